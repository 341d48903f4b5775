"""A platform in `team` trust whose people have a container each: `Team` for who they are, `Contained` for where they work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import container_world
import engine as engines
import team_world
from container_world import Contained
from running import Server
from team_world import Team

PEOPLE = ("anna", "bert")
MENU = """
[small]
memory = "1G"
cores = 2
[tiny]
memory = "600M"
cores = 1
"""


@dataclass(frozen=True)
class Crew(Contained, Team):
    """`servers` are the people's own, started once; `kernels` one in each."""

    servers: dict[str, Server] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)

    def serve(self, profile: str = "", name: str = "", user: str = "ada") -> Server:
        """Start a server, or find it running."""
        if name or user not in self.servers:
            found = super().serve(profile, name, user)
            if name:
                return found
            self.servers[user] = found
        return self.servers[user]

    def run(self, user: str, code: str, *, timeout: float = 60) -> str:
        """Return what `code` prints in a kernel of `user`, in their container."""
        server = self.serve(user=user)
        if user not in self.kernels:
            self.kernels[user] = server.start_kernel()
        return server.execute(self.kernels[user], code, timeout=timeout)

    def container(self, user: str) -> Any:
        return next(found for found in self.containers() if found.name == f"{self.prefix}-{user}")


@contextmanager
def running(home: Path, engine: engines.Engine, people: Iterable[str] = PEOPLE, **more: str) -> Iterator[Crew]:
    """Yield the platform with `people` in it; at the end nothing of it is left."""
    with container_world.running(home, engine, menu=MENU, **team_world.TRUST, **more) as contained:
        crew = Crew(contained.home, contained.url, contained.settings, engine=engine)
        for name in people:
            crew.people[name] = crew.invite(name, team_world.EVERYBODY[name])
            crew.people[name].client().projects.create(project_of(name))
            table = home / "data" / "raw" / project_of(name)
            table.mkdir(parents=True)
            (table / "row.txt").write_text(f"a row of {name}")
        yield crew


def project_of(name: str) -> str:
    """Return the project that `name` is the only member of."""
    return f"work-of-{name}"
