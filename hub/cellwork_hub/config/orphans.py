"""Containers that a killed hub left behind: made, and not yet written down. A hub removes them when it starts.

A user's container that was made before this hub began and that no server in its database has is nobody's; so is the
container of a run's kernel that has ended (its runner removes it, unless it was killed). What runs for a run is left alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import Any

from cellwork.errors import CellworkError
from cellwork.home import Home
from cellwork_hub.containers import engine, way

log = logging.getLogger("cellwork.hub")
WAIT_SECONDS = 120
BEGINS_SECONDS = 60
"""Within that a run's container is started after it was made."""

tasks: set[asyncio.Task[None]] = set()


def remove_when_started(home: Home, chosen: way.Way) -> None:
    """Begin to look once the hub has its database; the hub's configuration is read in its event loop, other readers have none."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    task = loop.create_task(_remove(home, chosen, time.time()))
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _remove(home: Home, chosen: way.Way, began: float) -> None:
    from jupyterhub import orm
    from jupyterhub.app import JupyterHub

    end = time.monotonic() + WAIT_SECONDS
    while not (JupyterHub.initialized() and getattr(JupyterHub.instance(), "db", None)):
        if time.monotonic() > end:
            return
        await asyncio.sleep(0.2)
    rows = JupyterHub.instance().db.query(orm.Spawner)
    known = {str((row.state or {}).get("object_id", "")) for row in rows}
    await asyncio.to_thread(remove, home, chosen, known, began)


def remove(home: Home, chosen: way.Way, known: set[str], before: float) -> list[str]:
    """Remove the containers of `home` from `before` (seconds since 1970) that are nobody's; return their names."""
    try:
        client = engine.connect(chosen.engine).client()
    except CellworkError as error:
        log.warning("containers that were left behind stay: %s", error)
        return []
    mine = {"label": f"{engine.OWNER}={way.label(home)}"}
    found = client.containers.list(all=True, filters=mine, ignore_removed=True)
    gone = [c for c in found if c.id not in known and _nobodys(c, way.prefix(home), before)]
    for container in gone:
        log.warning("container %s is no server's and is removed", container.name)
        try:
            container.remove(force=True)
        except OSError as error:  # docker's errors are of this kind; what is there may go by itself meanwhile
            log.warning("container %s stays: %s", container.name, error)
    client.close()
    return [container.name for container in gone]


def _nobodys(container: Any, prefix: str, before: float) -> bool:
    """Whether it is a user's from before, or a run's that has ended or was never begun."""
    if container.name.startswith(prefix):
        return _made(container) < before
    return container.status in ("exited", "dead", "created") and _made(container) < before - BEGINS_SECONDS


def _made(container: Any) -> float:
    return datetime.fromisoformat(container.attrs["Created"][:19] + "+00:00").timestamp()
