"""`cellwork dashboard`: a notebook as a page for others. It runs as its owner, whoever looks; its group may look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cellwork import errors, ids
from cellwork import project as projects
from cellwork.cli import show
from cellwork.client import connect
from cellwork.jobs import schedule
from cellwork.wire.dashboards import Published, PublishRequest

if TYPE_CHECKING:
    from cellwork.client import Client


@click.group()
def dashboard() -> None:
    """Publish notebooks as dashboards.

    Example: cellwork dashboard publish report.ipynb --group project:flights
    """


@dashboard.command()
@click.argument("notebook", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--name", default="", help="What it is called; default: the file's name.")
@click.option(
    "--group", default="", help="Who may look: project:NAME or group:NAME that you are in. Default: only you."
)
@click.option(
    "--profile",
    default="",
    help="How large its server is, by the menu of servers. Default: the first that you may have.",
)
@show.as_json
def publish(notebook: Path, name: str, group: str, profile: str, json: bool) -> None:
    """Run a notebook as a page, as you, for a group; again after a change publishes what it is now.

    Whoever looks sees what you may see: its cells run with your rights, never with a viewer's. Where a cell fails, or the page is not whole
    after two minutes, it is shown as it last was, under a line that says since when and which cell.

    Example: cellwork dashboard publish report.ipynb --group project:flights --profile cpu-small
    """
    client, path = connect(), notebook.resolve()
    found = projects.find(path.parent)
    name = ids.name(name or path.stem.lower().replace(" ", "-"), "dashboard")
    request = PublishRequest(
        notebook=path.name, content=path.read_text(), group=group, profile=profile, files=schedule.beside(path, path.parent, found)
    )  # fmt: skip
    about = client.dashboards.publish(found.name, name, request)
    client.dashboards.start(about)
    address = _address(client, about)
    if json:
        return show.document({"dashboard": about, "address": address})
    who = f"you and {group}" if group else "you"
    return click.echo(f"{about.project}/{about.name} is at {address}\n  it runs as {about.owner}; who may look: {who}")


@dashboard.command("list")
@click.argument("project", default="")
@show.as_json
def list_(project: str, json: bool) -> None:
    """Published dashboards, whose they are and whether they run.

    Example: cellwork dashboard list flights
    """
    client = connect()
    found = client.dashboards.list(project)
    if json:
        return show.document(found)
    rows = [(f"{d.project}/{d.name}", d.owner, d.group or "only its owner", client.dashboards.state(d) or "-", d.profile or "-", d.at, _address(client, d)) for d in found]  # fmt: skip
    return show.table(rows, ("dashboard", "runs as", "shared with", "server", "profile", "published", "address"), empty="none; publish one: cellwork dashboard publish NOTEBOOK")  # fmt: skip


@dashboard.command()
@click.argument("name")
@show.as_json
def unpublish(name: str, json: bool) -> None:
    """Take a dashboard down: its server ends, and nobody else may open it any more.

    Example: cellwork dashboard unpublish flights/report
    """
    client, (project, short) = connect(), ids.split_name(name)
    about = _find(client, project, short)
    client.dashboards.stop(about, remove=True)
    client.dashboards.remove(project, short)
    if json:
        return show.document(about)
    return click.echo(f"{name} is taken down")


def _address(client: Client, about: Published) -> str:
    """Return where browsers find it."""
    return client.connection.public_url + about.path


def _find(client: Client, project: str, name: str) -> Published:
    known = {each.name: each for each in client.dashboards.list(project)}
    if name not in known:
        raise errors.NotFound("dashboard", f"{project}/{name}", "is not published", errors.near_miss(name, known))
    return known[name]
