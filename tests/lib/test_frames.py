"""Kernel messages as websocket frames: what Jupyter's own functions write we read, and the reverse; what is no frame is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1

from cellwork.errors import BadInput
from cellwork.runs import frames

PARTS = st.lists(st.binary(max_size=40), min_size=4, max_size=8)


@given(st.sampled_from(frames.CHANNELS), PARTS)
@settings(max_examples=100, deadline=None)
def test_a_frame_is_what_jupyter_makes_of_the_same_message(channel: str, parts: list[bytes]) -> None:
    frame = frames.pack(channel, parts)
    assert frame == serialize_msg_to_ws_v1(parts, channel)
    assert frames.unpack(frame) == (channel, parts)
    assert deserialize_msg_from_ws_v1(frame) == (channel, parts)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        frames.unpack(data)


@given(PARTS, st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_frame_is_refused_or_stays_within_itself(parts: list[bytes], data: st.DataObject) -> None:
    frame = bytearray(frames.pack("shell", parts))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    try:
        _, found = frames.unpack(bytes(frame))
    except BadInput:
        return
    assert sum(map(len, found)) <= len(frame)
