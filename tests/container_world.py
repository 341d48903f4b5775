"""A platform whose user servers are containers, with a menu of profiles that work, that are wrong, and that lie."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine as engines
import httpx
from running import Platform, Server, address, started, wait_for

from cellwork.home import Home
from cellwork_hub.containers import way

SILENT, UNREADABLE = "cellwork-test/silent", "cellwork-test/unreadable"
MENU = f"""
[tiny]
memory = "700M"
cores = 0.8
[larger]
memory = "1G"
cores = 1
[gpu]
memory = "700M"
cores = 1
gpus = 1
[broken]
memory = "700M"
cores = 1
image = "{engines.BASE}"
[silent]
memory = "700M"
cores = 1
image = "{SILENT}"
[starved]
memory = "256M"
cores = 1
image = "{UNREADABLE}"
[nowhere]
memory = "700M"
cores = 1
image = "127.0.0.1:9/none:1"
[unbuilt]
memory = "700M"
cores = 1
image = "gpu"
"""


@dataclass(frozen=True)
class Contained(Platform):
    engine: engines.Engine | None = None

    @property
    def prefix(self) -> str:
        return way.prefix(Home(self.home))

    def containers(self, all: bool = False) -> list[Any]:
        assert self.engine
        return [
            c
            for c in self.engine.client.containers.list(all=all, ignore_removed=True)
            if c.name.startswith(self.prefix)
        ]

    def ask(self, profile: str = "", name: str = "", user: str = "ada") -> httpx.Response:
        """Ask the hub for a server, as its page does."""
        with self.hub() as hub:
            hub.post(f"/users/{user}")
            path = f"/users/{user}/servers/{name}" if name else f"/users/{user}/server"
            return hub.post(path, json={"profile": profile} if profile else {})

    def story(self, name: str = "", user: str = "ada") -> list[dict[str, Any]]:
        """Return the events of a start, from its beginning to its end."""
        path = f"/users/{user}/servers/{name}/progress" if name else f"/users/{user}/server/progress"
        events = []
        with self.hub() as hub, hub.stream("GET", path, timeout=180) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    events.append(json.loads(line.removeprefix("data:")))
                    if events[-1].get("ready") or events[-1].get("failed"):
                        break
        return events

    def serve(self, profile: str = "tiny", name: str = "", user: str = "ada") -> Server:
        """Start a server and wait until it answers."""
        answer = self.ask(profile, name, user)
        assert answer.status_code in (201, 202), answer.text
        assert answer.status_code == 201 or self.story(name, user)[-1].get("ready")
        return self.reach(name, user)

    def reach(self, name: str = "", user: str = "ada") -> Server:
        """Return a server that runs, with a token for it."""
        with self.hub() as hub:
            wanted = {"expires_in": 3600, "scopes": [f"access:servers!user={user}"]}
            token = str(hub.post(f"/users/{user}/tokens", json=wanted).json()["token"])
        return Server(self.url, f"{user}/{name}" if name else user, token)

    def stop_server(self, name: str = "", user: str = "ada") -> None:
        with self.hub() as hub:
            path = f"/users/{user}/servers/{name}" if name else f"/users/{user}/server"
            hub.delete(path)
            wait_for(lambda: name not in hub.get(f"/users/{user}").json()["servers"], 60, "the end of the server")


@contextmanager
def running(home: Path, engine: engines.Engine, *, menu: str = MENU, **more: str) -> Iterator[Contained]:
    """Yield the platform; at the end it is stopped, and no process and no container of it is left."""
    home.mkdir(mode=0o700, parents=True)
    (home / "profiles.toml").write_text(menu)
    settings = {"CELLWORK_CONTAINER_ENGINE": engine.address, **more}
    with started(home, **settings) as said:
        assert "user servers: containers, Docker" in said
        platform = Contained(home, address(said), settings, engine)
        yield platform
    assert platform.containers(all=True) == []


def lying_images(engine: engines.Engine) -> None:
    """Make an image whose server never answers, and one whose server needs more memory than it gets to start."""
    greedy = "python3 -c 'x = bytearray(2**30); import time; time.sleep(600)'"
    for name, script in ((SILENT, "echo I am thinking; exec sleep 600"), (UNREADABLE, greedy)):
        lines = f"FROM {engine.base()}\nENV PATH=/usr/local/bin:/usr/bin:/bin\nRUN printf '#!/bin/sh\\n{_quoted(script)}\\n' > /usr/local/bin/cellwork-server && chmod 755 /usr/local/bin/cellwork-server\n"
        engine.client.images.build(fileobj=io.BytesIO(lines.encode()), tag=name, network_mode="none", rm=True)


def _quoted(script: str) -> str:
    return script.replace("'", "'\"'\"'")
