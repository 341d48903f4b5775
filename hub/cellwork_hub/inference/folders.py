"""The inference service without hub and platform, as `cellwork serve` runs it, for callers with an API key.

Endpoints are those that the home has served before, whatever has become of the registry since, and the model folders that the command
line names; a folder passes the sanity test and no gate, for whoever starts the service has chosen it. Routes change through a
running platform only: with neither hub nor registry nobody may. The first of several processes deploys, the others wait for it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from anyio import to_thread
from sqlalchemy import Engine
from starlette.types import Scope

from cellwork import ids, scopes
from cellwork.errors import Unavailable
from cellwork.models import package
from cellwork.wire.endpoints import Deploy
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.features import Definitions
from cellwork.wire.gate import Check, Gate
from cellwork.wire.keys import KeyWish
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub.auth import NOBODY
from cellwork_hub.context import Context
from cellwork_hub.inference import keys
from cellwork_hub.inference.app import build
from cellwork_hub.inference.deploy import Endpoints
from cellwork_hub.inference.door import FrontDoor
from cellwork_hub.route import Call

DEPLOY_SECONDS = 300.0
WAIT_SECONDS = 0.1


class Folders:
    """The registry of a service that runs alone: the folders it was given."""

    def __init__(self, folders: dict[str, Path]) -> None:
        """`folders` by the endpoint's full name."""
        self.folders = folders

    def gate(self, name: str, version: int, promoter: str) -> Gate:
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


def service(context: Context, folders: dict[str, Path], *, worker: int | None = None) -> FrontDoor:
    """Return the service of `context`'s home, with `folders` deployed where they are not live yet; as `worker`, one of several."""

    async def deploy(endpoints: Endpoints) -> None:
        for name, folder in folders.items():
            entry = await to_thread.run_sync(endpoints.table.get, name)
            live = entry.live.record.version if entry else None
            if live is None or live.digest != package.digest(folder):
                wish = Deploy(version=live.version + 1 if live else 1, reason=f"cellwork serve, from {folder.name}")
                await endpoints.deploy(own_call(), name, wish)

    async def wait(endpoints: Endpoints) -> None:
        end = time.monotonic() + DEPLOY_SECONDS
        for name, folder in folders.items():
            digest = await to_thread.run_sync(package.digest, folder)
            while (
                entry := await to_thread.run_sync(endpoints.table.get, name)
            ) is None or entry.live.record.version.digest != digest:
                if time.monotonic() > end:
                    raise Unavailable("endpoint", name, "was not deployed by the first process", "look at its log")
                await asyncio.sleep(WAIT_SECONDS)
            await endpoints.adopt(name)

    return build(context, authorise=nobody, registry=Folders(folders), worker=worker, begin=wait if worker else deploy)


def own_call() -> Call:
    """Return a call of whoever starts the service."""
    starter = Principal(kind="service", name="serve", scopes=scopes.ALL)
    return Call(starter, ids.new("req"), Origin(), {}, {}, None, {})


def make_keys(engine: Engine, projects: set[str], name: str) -> list[str]:
    """Return a new token for each of `projects`."""
    return [keys.make(engine, own_call(), KeyWish(project=project, name=name)).token for project in sorted(projects)]
