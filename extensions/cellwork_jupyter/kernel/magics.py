"""`%cellwork` and `%why`: thin shells of library functions. Their values can be assigned; argparse explains them."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from cellwork import errors

if TYPE_CHECKING:
    from cellwork.lineage import Trail

SERVICES = ("cellwork", "jobs", "inference")


@dataclass(frozen=True)
class Connection:
    """Whether the services answer, for whom, and for which project."""

    url: str
    user: str
    project: str
    services: dict[str, str]

    def _lines(self) -> list[tuple[str, str]]:
        return [
            ("platform", self.url or "none"),
            ("user", self.user or "unknown"),
            ("project", self.project or "none in this folder or above it"),
            *self.services.items(),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:10} {text}" for name, text in self._lines())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(t)}</td></tr>" for n, t in self._lines())
        return f"<table>{rows}</table>"


def connection() -> Connection:
    """Ask every service whether it is ready."""
    from cellwork import origin, project
    from cellwork.client import connect

    try:
        name = project.find().name
    except errors.NotFound:
        name = ""
    user = origin.gather().user
    try:
        client = connect()
    except errors.Unavailable as error:
        return Connection("", user, name, {"services": str(error)})
    return Connection(client.connection.url, user, name, {service: _state(client, service) for service in SERVICES})


def _state(client: Any, service: str) -> str:
    try:
        client.connection.raw(service, "GET", "/health/ready")
    except errors.CellworkError as error:
        return str(error)
    return "ready"


@magics_class
class CellworkMagics(Magics):
    @magic_arguments()
    @line_magic
    def cellwork(self, line: str) -> Connection:
        """Show the platform this kernel is connected to, the user and the project.

        Example: %cellwork
        """
        parse_argstring(self.cellwork, line)
        return connection()

    @magic_arguments()
    @argument("--forward", action="store_true", help="what was made of it, instead of where it comes from")
    @argument(
        "id", help="a prediction (pred_…), a version (project/name@3), a dataset (ds_…), a batch (bat_…) or any id"
    )
    @line_magic
    def why(self, line: str) -> Trail:
        """Show where an id comes from, back to the raw batches, as it was then.

        Example: %why pred_01jd3v5w2n6q8r9s0t1v2w3x4y
        """
        from cellwork import lineage
        from cellwork.client import connect

        asked = parse_argstring(self.why, line)
        try:
            return lineage.why(connect(), asked.id, forward=asked.forward)
        except errors.CellworkError as error:
            raise UsageError(str(error)) from None
