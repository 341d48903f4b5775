"""The way to a kept kernel: its runner opens a tunnel from inside, and the run's owner talks through it as to any kernel.

Both speak Jupyter's websocket frames (`cellwork.runs.frames`), which pass as they are. A runner needs no port that can be
reached from outside. Who reads too slowly is let go, so that nobody holds up the others. The tunnels of one service process
are known to that process only.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from starlette.websockets import WebSocket, WebSocketDisconnect

from cellwork.errors import Conflict
from cellwork.runs.frames import PROTOCOL
from cellwork_hub.jobs import leases, store
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

TUNNEL_SECONDS, SLOW_SECONDS = 10.0, 20.0
GONE = 4410
"""The close code when the kernel is kept no more."""


@dataclass(eq=False)
class Tunnel:
    runner: WebSocket
    clients: set[WebSocket] = field(default_factory=set)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def inwards(self, frame: bytes) -> None:
        async with self.turn:
            await self.runner.send_bytes(frame)

    async def outwards(self, frame: bytes) -> None:
        for client in list(self.clients):
            try:
                await asyncio.wait_for(client.send_bytes(frame), SLOW_SECONDS)
            except (TimeoutError, WebSocketDisconnect, RuntimeError):
                self.clients.discard(client)


class Channels:
    """The open tunnels, by run."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.tunnels: dict[str, Tunnel] = {}
        self.opened = asyncio.Event()

    async def runner(self, call: Call) -> None:
        """Serve the tunnel of a runner until either end closes it."""
        socket: WebSocket = call.body
        with self.state.engine.connect() as db:
            query = "SELECT * FROM kept WHERE run = :run AND fence = :fence"
            if not store.one(db, query, run=call.path["run"], fence=call.number("fence", -1)):
                raise Conflict("kernel of run", call.path["run"], "is kept no more", "end it")
        await socket.accept(subprotocol=PROTOCOL)
        tunnel = self.tunnels[call.path["run"]] = Tunnel(socket)
        self.opened.set()
        self.opened = asyncio.Event()
        try:
            while True:
                await tunnel.outwards(await socket.receive_bytes())
        finally:
            if self.tunnels.get(call.path["run"]) is tunnel:
                del self.tunnels[call.path["run"]]
            for client in list(tunnel.clients):
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                    await client.close(GONE, "the kernel has ended, or its runner went away")

    async def client(self, call: Call) -> None:
        """Serve the owner of a run, who talks to its kept kernel."""
        socket: WebSocket = call.body
        with self.state.engine.connect() as db:
            row = store.run_row(db, call.path["run"])
            call.enter(row["project"])
            leases.check_owner(self.state, call.principal, row)
        tunnel = await self._tunnel(row["id"])
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
        tunnel.clients.add(socket)
        try:
            while True:
                await tunnel.inwards(await socket.receive_bytes())
        except RuntimeError:  # the tunnel was closed
            return
        finally:
            tunnel.clients.discard(socket)

    async def _tunnel(self, run: str) -> Tunnel:
        """Return the tunnel of `run`, which may open in a moment."""
        end = asyncio.get_running_loop().time() + TUNNEL_SECONDS
        while run not in self.tunnels:
            with self.state.engine.connect() as db:
                held = store.one(db, "SELECT run FROM kept WHERE run = :run", run=run)
            left = end - asyncio.get_running_loop().time()
            if not held or left <= 0:
                way_out = "start on a new kernel: cellwork run resume --new-kernel"
                raise Conflict("kernel of run", run, "is not kept (any more)", way_out)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.opened.wait(), min(left, 1.0))
        return self.tunnels[run]


def routes(state: State) -> list[Route]:
    channels = Channels(state)
    one = "/api/v1/runs/{run}/kernel"
    return [
        Route(
            "WEBSOCKET",
            f"{one}/channels",
            channels.client,
            scope="jobs:write",
            doc="Talk to the kept kernel of a run of yours, as to any Jupyter kernel.",
        ),
        Route(
            "WEBSOCKET",
            f"{one}/tunnel",
            channels.runner,
            scope="runs:execute",
            doc="A runner opens the way to a kernel it keeps.",
        ),
    ]
