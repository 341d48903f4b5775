"""`%register`: a fitted model becomes a version, with the cell that says so as its origin. A thin shell of `cellwork.models.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from cellwork import errors

if TYPE_CHECKING:
    from cellwork.wire.evaluations import VersionRef


@magics_class
class RegisterMagics(Magics):
    @magic_arguments()
    @argument("model", help="name of the fitted model, or of what %%%%train found")
    @argument("name", help="the registered model's name, in the project of the dataset")
    @argument("--dataset", required=True, help="name of the dataset, or of the part of it, that it was trained on")
    @argument("--example", required=True, help="name of a frame with rows as they were given to fit")
    @argument("--baseline", default="", help="input column whose rate it must beat (default: the overall rate)")
    @argument("--metrics", default="", help="name of metrics to note: a mapping, or a report of evaluation.validation")
    @argument("--description", default="", help="what it is for")
    @argument("--code", action="append", default=[], help="name of a module with classes of your own in the model")
    @line_magic
    def register(self, line: str) -> VersionRef:
        """Register a fitted model as the next version of a name; `cellwork.ui.register.RegisterForm` is the form of it.

        Example: %register model delay --dataset train --example X --baseline hour
        """
        asked = parse_argstring(self.register, line)
        given = self._given(asked)
        try:
            return self._registered(asked.name, given)
        except errors.CellworkError as error:
            raise UsageError(str(error)) from None

    def _given(self, asked: Any) -> dict[str, Any]:
        try:
            model, metrics = self._named(asked.model), self._named(asked.metrics) if asked.metrics else {}
            return {
                "model": getattr(model, "model", model), "dataset": self._named(asked.dataset),
                "X_example": self._named(asked.example), "metrics": getattr(metrics, "metrics", metrics),
                "baseline": asked.baseline, "description": asked.description.strip("\"'"),
                "code": [self._named(name) for name in asked.code],
            }  # fmt: skip
        except errors.BadInput as error:
            raise UsageError(str(error)) from None

    def _registered(self, name: str, given: dict[str, Any]) -> VersionRef:
        from cellwork.models import registry

        return registry.register(given.pop("model"), name, **given)

    def _named(self, name: str) -> Any:
        if name not in self.shell.user_ns:
            known = [each for each in self.shell.user_ns if not each.startswith("_")]
            raise errors.BadInput("name", name, "is not there", errors.near_miss(name, known))
        return self.shell.user_ns[name]
