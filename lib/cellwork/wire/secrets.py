"""Secrets by reference: what a notebook asks for by name. Lists never carry a value."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct


class Secret(Struct):
    project: str
    name: str
    version: int
    owner: str
    shared: bool
    """Whether all members of the project may use it; else its owner alone."""
    at: datetime


class SecretRequest(Struct):
    value: str
    shared: bool = False


class SecretValue(Struct):
    value: str
    version: int


class Mask(Struct):
    """A value that must not be seen, and under which name it is known."""

    name: str
    value: str
