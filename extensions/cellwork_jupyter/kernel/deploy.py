"""`%deploy`, `%%canary`, `%%shadow`: routes from a notebook. What the cell says below the line is the reason, and stands in the audit.

Thin shells of `cellwork.serving`. A name without a project is of the project of the current folder.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from cellwork import errors, project, serving
from cellwork.cli import routes
from cellwork.wire.endpoints import ArmWish, RouteTable


@dataclass(frozen=True)
class Routes:
    """A route table as a notebook shows it; `table` is the record."""

    table: RouteTable

    def _lines(self) -> list[tuple[str, str]]:
        table = self.table
        back = [("at hand", f"version {table.previous.version}")] if table.previous else []
        live = ("live", f"version {table.live.version} of {table.live.name}")
        return [("endpoint", f"{table.endpoint}, revision {table.revision}"), live, *back, *routes.beside(table)]

    def __repr__(self) -> str:
        return "\n".join(f"{name:10} {text}" for name, text in self._lines())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(t)}</td></tr>" for n, t in self._lines())
        return f"<table>{rows}</table>"


@magics_class
class DeployMagics(Magics):
    @magic_arguments()
    @argument("--model", default="", help="full name of the model; default the endpoint's own")
    @argument("--promote", action="store_true", help="move the alias `champion` to the version first")
    @argument("--revision", type=int, default=None, help="the revision you saw; if it changed since, nothing happens")
    @argument("endpoint", help="project/name, or a name of this folder's project")
    @argument("version", type=int)
    @line_cell_magic
    def deploy(self, line: str, cell: str = "") -> Routes:
        """Give an endpoint a version that passes the gate and the sanity test.

        Example: %deploy flights/delay 2
        """
        asked = parse_argstring(self.deploy, line)
        return _changed(
            lambda: serving.deploy(
                _named(asked.endpoint), asked.version, model=asked.model, promote=asked.promote, revision=asked.revision,
                reason=cell.strip(),
            )
        )  # fmt: skip

    @magic_arguments()
    @argument("--model", default="", help="full name of the model; default the endpoint's own")
    @argument("--revision", type=int, default=None, help="the revision you saw; if it changed since, nothing happens")
    @argument("--weight", default="0", help="share of units, such as 10%% or 0.1")
    @argument("--unit", action="append", default=[], help="this unit gets it whatever the weight")
    @argument(
        "--when", action="append", default=[], metavar="NAME=A,B", help="requests with one of these values get it"
    )
    @argument("endpoint", help="project/name, or a name of this folder's project")
    @argument("version", type=int)
    @line_cell_magic
    def canary(self, line: str, cell: str = "") -> Routes:
        """Let a version answer a part of the requests; a unit keeps its version while the weight grows.

        Example: %%canary flights/delay 3 --weight 10%
        """
        asked = parse_argstring(self.canary, line)
        return _changed(
            lambda: _beside(
                asked, cell, weight=routes.share(asked.weight), units=asked.unit, when=routes.conditions(asked.when)
            )
        )

    @magic_arguments()
    @argument("--model", default="", help="full name of the model; default the endpoint's own")
    @argument("--revision", type=int, default=None, help="the revision you saw; if it changed since, nothing happens")
    @argument("endpoint", help="project/name, or a name of this folder's project")
    @argument("version", type=int)
    @line_cell_magic
    def shadow(self, line: str, cell: str = "") -> Routes:
        """Let a version score in the background what the endpoint answers; its scores are in the log only.

        Example: %%shadow flights/delay 3
        """
        asked = parse_argstring(self.shadow, line)
        return _changed(lambda: _beside(asked, cell, shadow=True))


def _beside(asked: Any, cell: str, **how: Any) -> RouteTable:
    """Put a version beside the live one as the line asks; the cell is the reason."""
    wish = ArmWish(model=asked.model, revision=asked.revision, reason=cell.strip(), **how)
    return serving.beside(_named(asked.endpoint), asked.version, wish)


def _named(endpoint: str) -> str:
    return endpoint if "/" in endpoint else project.find().full_name(endpoint)


def _changed(change: Callable[[], RouteTable]) -> Routes:
    try:
        return Routes(change())
    except errors.CellworkError as error:
        raise UsageError(str(error)) from None
