"""`cellwork serve`: the inference service without hub and platform, for callers with an API key.

Endpoints are those that the home has served before, whatever has become of the registry since, and the model folders that the command
line names; a folder passes the sanity test and no gate, for whoever starts the service has chosen it. Routes change through a
running platform only: with neither hub nor registry nobody may. One process; at SIGTERM what has begun is answered first.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click
from anyio import to_thread
from sqlalchemy import Engine
from starlette.types import Scope

from cellwork import db, ids, scopes, settings
from cellwork.errors import BadInput, Unavailable
from cellwork.models import package
from cellwork.wire.endpoints import Deploy
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.features import Definitions
from cellwork.wire.gate import Check, Gate
from cellwork.wire.keys import KeyWish
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub import edge
from cellwork_hub.auth import NOBODY
from cellwork_hub.context import Context
from cellwork_hub.inference import keys
from cellwork_hub.inference.app import MIGRATIONS, build
from cellwork_hub.inference.deploy import Endpoints
from cellwork_hub.inference.door import FrontDoor
from cellwork_hub.route import Call


class Folders:
    """The registry of a service that runs alone: the folders it was given."""

    def __init__(self, folders: dict[str, Path]) -> None:
        """`folders` by the endpoint's full name."""
        self.folders = folders

    def gate(self, name: str, version: int) -> Gate:
        ref = VersionRef(name=name, version=version, digest=package.digest(self._folder(name)))
        return Gate(
            version=ref, passed=True, checks=[Check(name="given", passed=True, text="by who started the service")]
        )

    def fetch(self, ref: VersionRef, folder: Path) -> None:
        shutil.copytree(self._folder(ref.name), folder, dirs_exist_ok=True)

    def definitions(self, project: str) -> Definitions | None:
        return None

    def _folder(self, name: str) -> Path:
        if name not in self.folders:
            raise Unavailable(
                "registry", name, "is not there: this service runs alone", "start a platform: cellwork up"
            )
        return self.folders[name]


async def nobody(scope: Scope) -> Principal:
    """Without a hub, who has no key is nobody."""
    return NOBODY


def service(context: Context, folders: dict[str, Path]) -> FrontDoor:
    """Return the service of `context`'s home, with `folders` deployed where they are not live yet."""

    async def begin(endpoints: Endpoints) -> None:
        for name, folder in folders.items():
            entry = await to_thread.run_sync(endpoints.table.get, name)
            live = entry.live.record.version if entry else None
            if live is None or live.digest != package.digest(folder):
                wish = Deploy(version=live.version + 1 if live else 1, reason=f"cellwork serve, from {folder.name}")
                await endpoints.deploy(own_call(), name, wish)

    return build(context, authorise=nobody, registry=Folders(folders), begin=begin)


def own_call() -> Call:
    """Return a call of whoever starts the service."""
    starter = Principal(kind="service", name="serve", scopes=scopes.ALL)
    return Call(starter, ids.new("req"), Origin(), {}, {}, None, {})


def make_keys(engine: Engine, projects: set[str], name: str) -> list[str]:
    """Return a new token for each of `projects`."""
    return [keys.make(engine, own_call(), KeyWish(project=project, name=name)).token for project in sorted(projects)]


@click.command()
@click.argument("models", nargs=-1, metavar="[PROJECT/NAME=FOLDER]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--new-key", default="", metavar="NAME", help="Make a key of this name for each project and print it.")
def serve(models: tuple[str, ...], host: str, port: int, new_key: str) -> None:
    """Serve endpoints without hub and platform: those of this home, and model folders; callers need an API key.

    Example: cellwork serve shop/churn=./model --port 8080 --new-key web
    """
    folders = dict(map(_named, models))
    context = Context(settings.load()[0], {"public": port, "hub": 0, "inference": port})
    context.home.ensure()
    engine = db.open_database(context.database_url("inference"), MIGRATIONS)
    projects = {name.partition("/")[0] for name in folders}
    for token in make_keys(engine, projects, new_key) if new_key else ():
        click.echo(token)
    engine.dispose()
    click.echo(f"serves on http://{host}:{port}", err=True)
    edge.serve(service(context, folders), host, port)


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise BadInput("model", text, "names no folder", "write project/name=folder")
    package.read(Path(folder))
    return "/".join(ids.split_name(name)), Path(folder).absolute()
