"""`cellwork search`: data sets, views, features, labels and datasets by words."""

from __future__ import annotations

import click

from cellwork.cli import show


@click.command()
@click.argument("words", nargs=-1, required=True)
@click.option("--project", default="", help="Only of this project.")
@click.option(
    "--kind", type=click.Choice(["raw", "view", "feature", "label", "service", "dataset"]), help="Only these."
)
@click.option("--limit", default=20, show_default=True, help="At most so many.")
@show.as_json
def search(words: tuple[str, ...], project: str, kind: str | None, limit: int, json: bool) -> None:
    """Find data by WORDS in names, descriptions, tags, owners and entities, and who uses it.

    Example: cellwork search delay
    """
    from cellwork.data import found as library

    found = library.search(" ".join(words), project=project, kind=kind, limit=limit)  # type: ignore[arg-type]
    if json:
        show.document(found)
        return
    rows = [
        (f.kind, f"{f.project}/{f.name}", f.owner, ", ".join(f.entities), ", ".join(f.used_by), f.description[:60])
        for f in found
    ]
    show.table(rows, ("kind", "name", "owner", "entities", "used by", "description"), empty="nothing found")
