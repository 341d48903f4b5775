"""`%%train`: run a cell that makes a frame and labels, then look for the best model of them. A thin shell of `cellwork.training`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from cellwork import clock, errors

if TYPE_CHECKING:
    from cellwork.training import Search


@magics_class
class TrainMagics(Magics):
    @magic_arguments()
    @argument("X", help="name of the frame to train on")
    @argument("y", help="name of its labels")
    @argument("--as", dest="name", default="found", help="name to give to what is found (default: found)")
    @argument("--validation", nargs=2, metavar=("X", "y"), help="names of rows to measure on, instead of folds")
    @argument(
        "--budget",
        default="60s",
        help="such as 90s or 10m (default: 60s); of a search of candidates it is the most it may take",
    )
    @argument("--metric", default="", help="default: what suits the labels")
    @argument("--models", default="", help="names of the catalogue with commas (default: all for tables)")
    @argument("--pipeline", default="", help="name of a pipeline to search the candidates of, instead of the catalogue")
    @argument("--candidates", default="", help="name of its candidates: parameter -> values, or -> a range")
    @argument("--method", default="auto", help="grid, random, halving, hyperband or bayes")
    @cell_magic
    def train(self, line: str, cell: str) -> Search | None:
        """Run the cell, then find the best model in a time budget; an interrupt keeps what is done.

        Example: %%train X y --budget 2m --models logistic,lightgbm --as found
        """
        asked = parse_argstring(self.train, line)
        ran = self.shell.run_cell(cell)
        if not ran.success:
            return None
        try:
            found = self._found(asked)
        except errors.CellworkError as error:
            raise UsageError(str(error)) from None
        self.shell.user_ns[asked.name] = found
        return found

    def _found(self, asked: Any) -> Search:
        from cellwork import training

        X, y = self._named(asked.X), self._named(asked.y)
        validation = tuple(map(self._named, asked.validation)) if asked.validation else None
        budget = clock.duration(asked.budget).total_seconds()
        terms: dict[str, Any] = {"validation": validation, "metric": asked.metric, "budget": budget}
        if bool(asked.pipeline) != bool(asked.candidates):
            raise errors.BadInput("%%train", "", "needs --pipeline and --candidates together", "give both, or neither")
        if asked.pipeline:
            space = self._named(asked.candidates)
            return training.search(self._named(asked.pipeline), space, X, y, method=asked.method, **terms)
        models = [name.strip() for name in asked.models.split(",") if name.strip()]
        return training.best(X, y, models=models, **terms)

    def _named(self, name: str) -> Any:
        if name not in self.shell.user_ns:
            known = [each for each in self.shell.user_ns if not each.startswith("_")]
            raise errors.BadInput("name", name, "is not there after the cell", errors.near_miss(name, known))
        return self.shell.user_ns[name]
