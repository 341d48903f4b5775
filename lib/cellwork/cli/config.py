"""`cellwork config`: every setting, its value, and where it came from."""

from __future__ import annotations

import click

from cellwork import settings
from cellwork.cli import show


@click.command()
@show.as_json
def config(json: bool) -> None:
    """Every setting, its value and where it came from.

    Example: cellwork config --json
    """
    origins = settings.load()[1]
    texts = {name: (variable, text) for name, variable, text in settings.documentation()}
    if json:
        show.document(
            {
                name: {"value": _plain(o.value), "from": o.source, "variable": texts[name][0], "about": texts[name][1]}
                for name, o in origins.items()
            }
        )
        return
    show.table(
        [(name, _plain(o.value), o.source, texts[name][1]) for name, o in origins.items()],
        ("setting", "value", "from", "about"),
    )


def _plain(value: object) -> object:
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value if value is not None else "")
