"""A page's connection to a kernel that also notes what is asked and what is said, so that the next page finds it (see `kept`).

What a kernel says reaches only whom it knows already as a listener, and that takes a moment after each connection and each
restart. So at first the kernel is asked something, on the channel where a busy one answers too, and until both its page and what is kept
have heard the answer, the page's messages wait, and the kernel's to it. Then the page is told what it has missed of the widgets
of a cell that runs, and the rest in its order: no cell's first words are lost, and no widget lacks a part.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from cellwork_jupyter.server import allowed, deaths
from cellwork_jupyter.server.kept import Kept

BINARY = "v1.kernel.websocket.jupyter.org"
ATTRIBUTE = "cellwork_kept"
HEAR_SECONDS, HEAR_TRIES = 0.5, 10


class KeepingConnection(ZMQChannelsWebsocketConnection):  # type: ignore[misc]
    """Jupyter's own connection, and with it what `kept`, `deaths` and `allowed` promise."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hears = Ear()
        self.held: list[tuple[str, list[Any]]] | None = []
        """What the kernel said before this page may hear it, by message id; None from then on."""

    def connect(self) -> Any:
        """Return what Jupyter waits for before it reads the page's first message; None if there is no connection."""
        kept = watch(self.multi_kernel_manager, self.kernel_id)
        self.allowed = asyncio.ensure_future(allowed.watch(self.websocket_handler))
        connected = super().connect()
        if connected:
            kept.joining.add(self.session.session)
        return connected and asyncio.ensure_future(self._heard(connected, kept))

    async def _heard(self, connected: Awaitable[None], kept: Watched) -> None:
        """Wait for `connected`, and until page and `kept` have heard the kernel; then let pass what was held back."""
        await connected
        control = self.kernel_manager.connect_control()
        try:
            for _ in range(HEAR_TRIES):
                asked = self.session.send(control, "kernel_info_request")["header"]["msg_id"]
                heard = asyncio.gather(self.hears.about(asked), kept.hears.about(asked))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard, HEAR_SECONDS)
                    return
            self.log.warning("kernel %s was not heard; what it says first may be lost", self.kernel_id)
        finally:
            control.close()
            self._catch_up(kept)

    def _catch_up(self, kept: Watched) -> None:
        held, self.held = self.held or [], None
        missed = kept.missed(self.session.session)
        stream = self.channels.get("iopub")
        if stream is None:  # it was closed meanwhile
            return
        for parts in missed.values():
            super().handle_outgoing_message(stream, parts)
        for name, parts in held:
            if name not in missed:
                super().handle_outgoing_message(stream, parts)

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        if self.held is None or (stream if isinstance(stream, str) else stream.channel) != "iopub":
            super().handle_outgoing_message(stream, outgoing_msg)
            return
        _, parts = self.session.feed_identities(outgoing_msg)
        self.hears.heard(str(json.loads(bytes(parts[2])).get("msg_id")))
        self.held.append((str(json.loads(bytes(parts[1]))["msg_id"]), outgoing_msg))

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        request = self._request(incoming_msg)
        if request and request[0].get("msg_type") == "execute_request":
            kept_of(self.kernel_manager).asked(*request)
        super().handle_incoming_message(incoming_msg)

    def _request(self, message: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None:
        """Return header, metadata and content of a message for the shell; None of any other."""
        if self.subprotocol == BINARY:
            channel, parts = deserialize_msg_from_ws_v1(message)
            if channel != "shell":
                return None
            header = json.loads(bytes(parts[0]))
            if header.get("msg_type") != "execute_request":
                return None
            return header, json.loads(bytes(parts[2])), json.loads(bytes(parts[3]))
        if not isinstance(message, str):
            return None
        told = json.loads(message)
        if told.get("channel", "shell") != "shell":
            return None
        return told["header"], told.get("metadata") or {}, told["content"]

    def on_kernel_restarted(self) -> None:
        """Say why in the cells that ran, then that it restarts: on that the page forgets what it had asked."""
        for header, content in kept_of(self.kernel_manager).last_words:
            message = self.session.msg("error", content, parent=header)
            if self.subprotocol == BINARY:
                self.write_message(serialize_msg_to_ws_v1(message, "iopub", self.session.pack), binary=True)
            else:
                message["channel"] = "iopub"
                self.write_message(json.dumps(message, default=str))
        super().on_kernel_restarted()


class Ear:
    """Somebody who waits to hear the kernel about a request."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[None]] = {}

    def about(self, request: str) -> asyncio.Future[None]:
        return self.waiting.setdefault(request, asyncio.get_running_loop().create_future())

    def heard(self, request: str) -> None:
        if (waits := self.waiting.pop(request, None)) and not waits.done():
            waits.set_result(None)


class Watched(Kept):
    """What is kept of a kernel that is watched, and with which words it died last."""

    def __init__(self) -> None:
        super().__init__()
        self.last_words: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.killed = deaths.killed_for_memory()
        self.ports: list[int] = []
        """Where the kernel is listened to; a page may ask for what is kept before anybody is connected."""
        self.stream: Any = None
        self.hears = Ear()


def kept_of(kernel: Any) -> Watched:
    found: Watched = getattr(kernel, ATTRIBUTE, None) or Watched()
    setattr(kernel, ATTRIBUTE, found)
    return found


def watch(kernels: Any, name: str) -> Watched:
    """Follow the kernel `name` from now on until it is shut down, if it isn't followed where it is now; return what is kept of it."""
    kernel = kernels.get_kernel(name)
    kept = kept_of(kernel)
    if kept.ports == kernel.ports:
        return kept
    if not kept.ports:
        kernels.add_restart_callback(name, _at_death(kernel, kept))
    kept.ports = list(kernel.ports)
    kept.stream = kernel.connect_iopub()
    session = Session(config=kernel.session.config, key=kernel.session.key)

    def told(parts: list[bytes]) -> None:
        _, rest = session.feed_identities(parts)
        message = session.deserialize(rest)
        kept.told(message, sum(map(len, rest)), parts)
        kept.hears.heard(message["parent_header"].get("msg_id", ""))

    kept.stream.on_recv(told)
    weakref.finalize(kernel, kept.stream.close)
    return kept


def _at_death(kernel: Any, kept: Watched) -> Callable[[], None]:
    """Return what is called before a kernel that died is started again, and before the connections are told."""
    known = weakref.ref(kernel)

    def died() -> None:
        kept.stream.flush()
        now, before = deaths.killed_for_memory(), kept.killed
        kept.killed = now
        kept.last_words = kept.end(deaths.why(_exit_code(known()), for_memory=now > before))

    return died


def _exit_code(kernel: Any) -> int | None:
    process = getattr(getattr(kernel, "provisioner", None), "process", None)
    return process.poll() if process else None
