"""Kernel messages as websocket frames: `v1.kernel.websocket.jupyter.org`, the format of Jupyter's own servers and clients.

A frame is a count of offsets, the offsets (64 bit, little endian), the channel's name, and the message's parts as they are on
the kernel's sockets: header, parent header, metadata, content, buffers. The signature is not part of it: each end of a tunnel
signs with the key of its own side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cellwork.errors import BadInput

PROTOCOL = "v1.kernel.websocket.jupyter.org"
CHANNELS = ("shell", "control", "stdin", "iopub")
LEAST_PARTS = 4


def pack(channel: str, parts: Sequence[bytes]) -> bytes:
    """Return the frame of a message's parts, from its header on."""
    name = channel.encode()
    offsets = [8 * (3 + len(parts))]
    for part in (name, *parts):
        offsets.append(offsets[-1] + len(part))
    head = b"".join(number.to_bytes(8, "little") for number in (len(offsets), *offsets))
    return head + name + b"".join(parts)


def unpack(frame: bytes) -> tuple[str, list[bytes]]:
    """Return channel and parts of `frame`; raises BadInput if it is not one."""
    count = int.from_bytes(frame[:8], "little")
    if not LEAST_PARTS + 2 <= count <= len(frame) // 8:
        raise BadInput("kernel message", f"{len(frame)} bytes", "is not a frame", f"speak {PROTOCOL}")
    offsets = [int.from_bytes(frame[8 * k : 8 * k + 8], "little") for k in range(1, count + 1)]
    if offsets[0] < 8 * (count + 1) or offsets != sorted(offsets) or offsets[-1] > len(frame):
        raise BadInput("kernel message", f"{len(frame)} bytes", "has parts outside itself", f"speak {PROTOCOL}")
    name, *parts = (frame[start:end] for start, end in pairwise(offsets))
    channel = name.decode("latin-1")
    if channel not in CHANNELS:
        raise BadInput("kernel message", channel[:40], "is on no channel of a kernel", f"use {', '.join(CHANNELS)}")
    return channel, parts
