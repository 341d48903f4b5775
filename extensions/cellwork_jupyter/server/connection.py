"""A page's connection to a kernel that also notes what is asked and what is said, so that the next page finds it (see `kept`)."""

from __future__ import annotations

import asyncio
import json
import weakref
from typing import Any

from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from cellwork_jupyter.server import allowed, deaths
from cellwork_jupyter.server.kept import Kept

BINARY = "v1.kernel.websocket.jupyter.org"
ATTRIBUTE = "cellwork_kept"


class KeepingConnection(ZMQChannelsWebsocketConnection):  # type: ignore[misc]
    """Jupyter's own connection, and with it what `kept`, `deaths` and `allowed` promise."""

    def connect(self) -> Any:
        watch(self.multi_kernel_manager, self.kernel_id)
        self.allowed = asyncio.ensure_future(allowed.watch(self.websocket_handler))
        return super().connect()

    def disconnect(self) -> None:
        if hasattr(self, "allowed"):
            self.allowed.cancel()
        super().disconnect()

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


class Watched(Kept):
    """What is kept of a kernel that is watched, and with which words it died last."""

    def __init__(self) -> None:
        super().__init__()
        self.last_words: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.killed = deaths.killed_for_memory()
        self.watched = False
        """A page may ask for what is kept before anybody is connected."""


def kept_of(kernel: Any) -> Watched:
    found: Watched = getattr(kernel, ATTRIBUTE, None) or Watched()
    setattr(kernel, ATTRIBUTE, found)
    return found


def watch(kernels: Any, name: str) -> None:
    """Follow the kernel `name` from now on, if it isn't followed yet, until it is shut down."""
    kernel = kernels.get_kernel(name)
    kept = kept_of(kernel)
    if kept.watched:
        return
    kept.watched = True
    session = Session(config=kernel.session.config, key=kernel.session.key)
    stream = kernel.connect_iopub()

    def told(parts: list[bytes]) -> None:
        _, rest = session.feed_identities(parts)
        kept.told(session.deserialize(rest), sum(map(len, rest)))

    stream.on_recv(told)
    weakref.finalize(kernel, stream.close)
    known = weakref.ref(kernel)

    def died() -> None:
        """Called before a kernel that died is started again, and before the connections are told."""
        stream.flush()
        now, before = deaths.killed_for_memory(), kept.killed
        kept.killed = now
        kept.last_words = kept.end(deaths.why(_exit_code(known()), for_memory=now > before))

    kernels.add_restart_callback(name, died)


def _exit_code(kernel: Any) -> int | None:
    process = getattr(getattr(kernel, "provisioner", None), "process", None)
    return process.poll() if process else None
