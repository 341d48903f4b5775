"""How every command prints: a table or sentences for people, one JSON document with --json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])


def as_json(command: F) -> F:
    """Add `--json` to a command; it gets the keyword `json: bool`."""
    return click.option("--json", "json", is_flag=True, help="Print one JSON document.")(command)


def document(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(rows: Sequence[Sequence[Any]], head: Sequence[str], *, empty: str = "none") -> None:
    """Print aligned columns; numbers to the right."""
    if not rows:
        click.echo(empty)
        return
    cells = [[text(value) for value in row] for row in rows]
    widths = [max(len(column), *(len(row[k]) for row in cells)) for k, column in enumerate(head)]
    right = [all(isinstance(row[k], int | float) or row[k] is None for row in rows) for k in range(len(head))]
    for row in [list(head), *cells]:
        line = "  ".join(
            cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(row, widths, right, strict=True)
        )
        click.echo(line.rstrip())


def text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    return str(value)
