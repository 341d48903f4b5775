"""What an endpoint that answers a topic writes into others: answers, and messages that it could not answer."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Problem, Struct
from cellwork.wire.endpoints import RouteKind
from cellwork.wire.evaluations import VersionRef


class TopicAnswer(Struct):
    """The answer to one message. The same prediction may be sent twice; its id and score are the same then."""

    stream: str
    """Topic and partition, as a name, and with `place` the message's own id."""
    place: int
    endpoint: str
    prediction: str
    score: float
    version: VersionRef
    revision: int
    route: RouteKind
    reason: str = ""
    observation: str = ""
    defaults: list[str] = []


class TopicRefusal(Struct):
    """A message that was set aside, and why."""

    stream: str
    place: int
    arrived: datetime
    endpoint: str
    problem: Problem
    message: str
    """As it came; what is not UTF-8 in it is lost."""
