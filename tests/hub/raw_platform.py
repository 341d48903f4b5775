"""The raw-data and dataset routers as a real service on a free port, for the tests of both. Tokens: `author`, `reader`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from ports import free_port
from starlette.types import Scope

from cellwork import db
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.auth import NOBODY, bearer
from cellwork_hub.context import Context
from cellwork_hub.edge import Service
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call

TOKENS = {
    "author": frozenset({"data:read", "data:write", "features:read", "features:write", "features:apply"}),
    "reader": frozenset({"data:read"}),
}


async def authorise(scope: Scope) -> Principal:
    token = bearer(scope)
    return Principal(kind="user", name=token, scopes=TOKENS[token]) if token in TOKENS else NOBODY


def call() -> Call:
    """A call as it reaches a router, for tests that need no HTTP."""
    return Call(Principal(kind="user", name="author"), "req_1", Origin(user="author"), {}, {}, None, {})


def state_in(folder: Path, routers: Sequence[Any], **follow: Any) -> State:
    home = Home(folder / "home").ensure()
    engine = db.open_database(
        f"sqlite:///{home.db}/platform.sqlite", [records.MIGRATION, *(r.MIGRATION for r in routers)]
    )
    return State(engine, home, Context(Settings(home=home.root), {}), **follow)


@contextmanager
def serving(state: State, routers: Sequence[Any]) -> Iterator[str]:
    """Yield the address of a service of `routers`."""
    routes = [*records.routes(state.engine), *(route for router in routers for route in router.routes(state))]
    port = free_port()
    app = Service("cellwork", routes, authorise=authorise, most_bytes=1_000_000)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
