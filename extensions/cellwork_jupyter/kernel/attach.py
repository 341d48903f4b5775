"""A kernel that is only a way: Lab, or any Jupyter client, starts it, and it carries the messages to the kept kernel of a run.

``python -m cellwork_jupyter.kernel.attach RUN -f CONNECTION_FILE``, as the kernel spec that `cellwork run open` writes says. What
ends it (a shutdown, a restart, closing Lab) never ends the kernel of the run. When that is kept no more, it stays and says so to
every cell, instead of dying and being started again for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.session import Session
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException

from cellwork.client.base import address
from cellwork.errors import CellworkError
from cellwork.runs import frames
from cellwork.wire import PREFIX

GONE = 4410
TRIES, TRY_SECONDS = 15, 1.0
MOST_FRAME = 256 * 1024 * 1024


@dataclass
class Asked:
    """A request that is not over yet: its channel, who asked, its parts with their signature, and what is to come.

    A client waits for both, the reply and the kernel's word that it is idle again, which come by different ways.
    """

    channel: str
    identities: list[bytes]
    parts: list[bytes]
    left: set[str] = field(default_factory=lambda: {"reply", "idle"})


class Attachment:
    """The sockets of a kernel towards Jupyter, and a websocket to the service in the place of a kernel."""

    def __init__(self, run: str, connection: dict[str, Any]) -> None:
        self.run = run
        self.session = Session(key=connection["key"].encode(), signature_scheme=connection["signature_scheme"])
        self.context = zmq.asyncio.Context()
        self.sockets = {name: self._bind(kind, connection, name) for name, kind in KINDS.items()}
        self.waiting: dict[str, Asked] = {}
        self.over = asyncio.Event()

    def _bind(self, kind: int, connection: dict[str, Any], name: str) -> Any:
        socket = self.context.socket(kind)
        socket.linger = 500
        ip, port = connection["ip"], connection[f"{name}_port"]
        socket.bind(f"ipc://{ip}-{port}" if connection["transport"] == "ipc" else f"tcp://{ip}:{port}")
        return socket

    async def serve(self) -> None:
        """Carry messages until Jupyter ends this process; without a kernel at the other end, answer in its place."""
        beat = asyncio.create_task(self._beat())
        verdict = await self._until_gone()
        if not self.over.is_set():
            await self._stand_in(verdict)
        beat.cancel()

    async def _beat(self) -> None:
        while True:
            await self.sockets["hb"].send_multipart(await self.sockets["hb"].recv_multipart())

    async def _until_gone(self) -> str:
        """Return why the kernel can't be reached any more; the service may be away for some seconds."""
        why = ""
        for _ in range(TRIES):
            try:
                url, token = address()
                where = f"{url.replace('http', 'ws', 1)}{PREFIX['jobs']}/api/v1/runs/{self.run}/kernel/channels"
                headers = {"Authorization": f"Bearer {token}"}
                async with connect(
                    where, additional_headers=headers, subprotocols=[frames.PROTOCOL], proxy=None, max_size=MOST_FRAME  # type: ignore[list-item]
                ) as service:  # fmt: skip
                    await self._carry(service)
                    return ""
            except ConnectionClosed as error:
                if error.rcvd and error.rcvd.code == GONE:
                    return "its kernel has ended, or its runner went away"
            except CellworkError as error:
                return str(error)
            except InvalidHandshake as error:
                why = f"its kernel is not kept (any more), or the run is not yours ({error})"
                if "403" in str(error):
                    return why
            except (OSError, WebSocketException) as error:
                why = f"the platform does not answer ({error})"
            await asyncio.sleep(TRY_SECONDS)
        return why

    async def _carry(self, service: Any) -> None:
        """Carry until Jupyter shuts this process down; a closed websocket is raised."""
        tasks = [asyncio.create_task(self._inwards(name, service)) for name in ("shell", "control", "stdin")]
        tasks += [asyncio.create_task(self._outwards(service)), asyncio.create_task(self._until_over())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_over(self) -> None:
        await self.over.wait()

    async def _inwards(self, channel: str, service: Any) -> None:
        while True:
            if not await self.sockets[channel].poll():  # a receiving that is given up would take its message along
                continue
            identities, parts = self.session.feed_identities(await self.sockets[channel].recv_multipart(zmq.NOBLOCK))
            if self.session.sign(parts[1:5]) != parts[0]:
                continue
            header = json.loads(parts[1])
            if header["msg_type"] == "shutdown_request":
                self._shut_down(channel, identities, self.session.deserialize(parts))
                return
            if header["msg_type"].endswith("_request"):
                self.waiting[header["msg_id"]] = Asked(channel, identities, parts)
            await service.send(frames.pack(channel, parts[1:]))

    async def _outwards(self, service: Any) -> None:
        async for frame in service:
            channel, parts = frames.unpack(frame)
            signed = [b"<IDS|MSG>", self.session.sign(parts[:4]), *parts]
            kind, request = json.loads(parts[0])["msg_type"], json.loads(parts[1]).get("msg_id", "")
            if channel == "iopub":
                await self.sockets["iopub"].send_multipart([kind.encode(), *signed])
                if kind == "status" and json.loads(parts[3])["execution_state"] == "idle":
                    self._came(request, "idle")
            elif asked := self.waiting.get(request):  # else somebody else who is attached asked
                await self.sockets[channel].send_multipart([*asked.identities, *signed])
                if channel != "stdin":
                    self._came(request, "reply")

    def _came(self, request: str, what: str) -> None:
        if asked := self.waiting.get(request):
            asked.left.discard(what)
            if not asked.left:
                del self.waiting[request]

    def _shut_down(self, channel: str, identities: list[bytes], request: dict[str, Any]) -> None:
        content = {"status": "ok", "restart": request["content"].get("restart", False)}
        self.session.send(self._plain(channel), "shutdown_reply", content, parent=request, ident=identities)
        self.over.set()

    async def _stand_in(self, why: str) -> None:
        """Answer in the kernel's place: every cell shows that the run's kernel can't be reached, and why."""
        for asked in self.waiting.values():
            self._answer(asked, why)
        poller = zmq.asyncio.Poller()
        for name in ("shell", "control"):
            poller.register(self.sockets[name], zmq.POLLIN)
        while not self.over.is_set():
            ready = dict(await poller.poll(500))
            for name in ("shell", "control"):
                if self.sockets[name] in ready:
                    identities, parts = self.session.feed_identities(await self.sockets[name].recv_multipart())
                    self._answer(Asked(name, identities, parts), why)

    def _answer(self, asked: Asked, why: str) -> None:
        """Say what is still to come of a request; its cell shows why the kernel says no more."""
        request = self.session.deserialize(asked.parts)
        kind = request["header"]["msg_type"]
        if kind == "shutdown_request":
            self._shut_down(asked.channel, asked.identities, request)
        if kind == "shutdown_request" or not kind.endswith("_request"):
            return
        text = f"run {self.run}: {why}; choose another kernel, or start the run again: cellwork run resume --new-kernel"
        content: dict[str, Any] = {"status": "error", "ename": "KernelGone", "evalue": text, "traceback": [text]}
        if kind == "kernel_info_request":
            content = {"status": "ok", "protocol_version": "5.3", "implementation": "cellwork", "banner": text, "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}}  # fmt: skip
        elif kind == "execute_request":
            content["execution_count"] = 0
            self._publish(request, "error", {key: content[key] for key in ("ename", "evalue", "traceback")})
        if "reply" in asked.left:
            way, reply = self._plain(asked.channel), kind.replace("_request", "_reply")
            self.session.send(way, reply, content, parent=request, ident=asked.identities)
        self._publish(request, "status", {"execution_state": "idle"})

    def _publish(self, request: dict[str, Any], kind: str, content: dict[str, Any]) -> None:
        self.session.send(self._plain("iopub"), kind, content, parent=request, ident=kind.encode())

    def _plain(self, channel: str) -> Any:
        """Return the socket as the session's blocking `send` wants it; none of these messages is larger than the queue."""
        return zmq.Socket(self.sockets[channel])

    def close(self) -> None:
        self.context.destroy(linger=500)


KINDS = {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER, "iopub": zmq.PUB, "hb": zmq.ROUTER}


async def main(run: str, file: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt comes as a message and is the kernel's
    attachment = Attachment(run, json.loads(file.read_text()))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, attachment.over.set)
    try:
        await attachment.serve()
    finally:
        with contextlib.suppress(zmq.ZMQError):
            attachment.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run")
    parser.add_argument("-f", dest="file", type=Path, required=True)
    given = parser.parse_args()
    os.umask(0o077)
    asyncio.run(main(given.run, given.file))
