"""A topic in, predictions out: each message is a row (`cellwork.wire.endpoints.Row` as JSON), each answer a `TopicAnswer` in another topic.

    given out -> asked -> answered, and in the log -> in the topic of answers  -> acknowledged
                      `-> refused ----------------> in the topic of refusals -'

Whoever takes the messages is a client like any other and may be killed at any arrow: the message is given out again. Its row's key is made
from the message (topic, place, content), or is the row's own, so it is asked again under the same prediction id, and the log has it
once. Into the other topics it goes at least once, always under that id, and by the message's own key, so that what is in order by key stays so. Content counts because places begin anew when a topic does.

A message that is no row, or that the endpoint refuses, is refused at once; one that every version fails at, `TRIES` times. It holds up
nobody: what was asked together is asked in halves. When the service itself, its stores or its log are away nothing is refused: it ends.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from cellwork.errors import BadInput, CellworkError, Conflict, TooBusy, TooLarge, Unavailable
from cellwork.wire import Problem
from cellwork.wire.endpoints import Answer, Output, Request, Row
from cellwork.wire.topics import TopicAnswer, TopicRefusal

if TYPE_CHECKING:
    from cellwork.client import Client
    from cellwork.features.streams import Message

TRIES = 3
REST_SECONDS = 1.0
"""Before the second try; before each later one twice as long."""
BUSY_TRIES = 60
KEPT_REFUSALS = 100
Asked = tuple["Message", Row]


class Outlet(Protocol):
    """A topic that is written to."""

    def send(self, bodies: Sequence[bytes], keys: Sequence[bytes | None] = ()) -> None:
        """Append messages, each with its key; when this returns the broker has them. Raises Unavailable."""


class Scoring:
    """Takes messages of `cellwork.features.streams.consume` and has `endpoint` answer them."""

    def __init__(self, client: Client, endpoint: str, topic: str, answers: Outlet, refusals: Outlet) -> None:
        """`topic` is the one that the messages are of, by its whole name."""
        self.client, self.endpoint, self.topic = client, endpoint, topic
        self.answers, self.refusals = answers, refusals
        self.refused: list[str] = []
        """Why messages were refused, the latest hundred."""

    def __call__(self, messages: Sequence[Message]) -> int:
        """Answer or refuse each message; return how many were answered."""
        asked, refusals = list[Asked](), list[TopicRefusal]()
        for message in messages:
            try:
                asked.append((message, self._row(message)))
            except BadInput as error:
                refusals.append(self._refusal(message, error))
        found = self._ask(asked) if asked else []
        refusals += [each for each in found if isinstance(each, TopicRefusal)]
        answers = [each for each in found if isinstance(each, TopicAnswer)]
        keys = {(message.stream, message.place): message.key for message in messages}
        for outlet, told in ((self.refusals, refusals), (self.answers, answers)):
            if told:
                named = [keys[each.stream, each.place] for each in told]
                outlet.send([msgspec.json.encode(each) for each in told], named)
        return len(answers)

    def _row(self, message: Message) -> Row:
        """Return what a message asks, with its key. Raises BadInput unless it is a row that says something."""
        name, way_out = (
            f"message of {message.stream!r}",
            'send {"features": {…}, "entities": {…}}, as one row of a request',
        )
        try:
            row = msgspec.json.decode(message.body, type=Row)
        except msgspec.MsgspecError as error:
            raise BadInput(name, message.place, f"is not a row: {error}", way_out) from None
        if not row.features and not row.entities:
            raise BadInput(name, message.place, "has neither features nor entities", way_out)
        return msgspec.structs.replace(row, key=row.key or self._key(message))

    def _key(self, message: Message) -> str:
        content = hashlib.sha256(message.body).hexdigest()[:32]
        return f"{self.topic} {message.stream} {message.place} {content}"

    def _ask(self, asked: list[Asked]) -> list[TopicAnswer | TopicRefusal]:
        try:
            return self._answered(asked)
        except (BadInput, Conflict, TooLarge, Unavailable) as error:
            if not _is_of_a_row(error):
                raise
            if len(asked) == 1:
                return [self._again(asked[0], error)]
        half = len(asked) // 2
        return [*self._ask(asked[:half]), *self._ask(asked[half:])]

    def _again(self, one: Asked, error: CellworkError) -> TopicAnswer | TopicRefusal:
        """Ask a message again that every version failed at; what is wrong in itself is refused."""
        for number in range(TRIES - 1 if isinstance(error, Unavailable) else 0):
            time.sleep(REST_SECONDS * 2**number)
            try:
                return self._answered([one])[0]
            except (BadInput, Conflict, TooLarge, Unavailable) as again:
                if not _is_of_a_row(again):
                    raise
                error = again
        return self._refusal(one[0], error)

    def _answered(self, asked: list[Asked]) -> list[TopicAnswer | TopicRefusal]:
        answer = self._predict(Request(rows=[row for _, row in asked]))
        logged = any(output.repeated for output in answer.outputs)  # of several times, then, and of several versions
        return [self._said(one, output, answer, logged) for one, output in zip(asked, answer.outputs, strict=True)]

    def _predict(self, request: Request) -> Answer:
        for _ in range(BUSY_TRIES):
            try:
                return self.client.endpoints.predict(self.endpoint, request)
            except TooBusy:
                time.sleep(REST_SECONDS)
        return self.client.endpoints.predict(self.endpoint, request)

    def _said(self, one: Asked, output: Output, answer: Answer, logged: bool) -> TopicAnswer:
        """Return the answer as it came or, if it is `logged`, as the log has it."""
        message, row = one
        told = {"version": answer.model, "revision": answer.revision, "route": answer.route, "reason": answer.reason}
        if logged:
            kept = self.client.endpoints.prediction(output.id)
            told = {"version": kept.version, "revision": kept.revision, "route": kept.route, "reason": kept.reason}
        return TopicAnswer(
            stream=message.stream, place=message.place, endpoint=self.endpoint, prediction=output.id, score=output.score,
            observation=row.observation, defaults=output.defaults, **told,  # type: ignore[arg-type]
        )  # fmt: skip

    def _refusal(self, message: Message, error: CellworkError) -> TopicRefusal:
        self.refused = [*self.refused[1 - KEPT_REFUSALS :], f"{message.stream} {message.place}: {error}"]
        problem = Problem(
            type=type(error).__name__,
            subject=error.subject,
            value=error.value,
            verdict=error.verdict,
            way_out=error.way_out,
        )
        return TopicRefusal(
            stream=message.stream,
            place=message.place,
            arrived=message.arrived,
            endpoint=self.endpoint,
            problem=problem,
            message=message.body.decode(errors="replace"),
        )


def _is_of_a_row(error: CellworkError) -> bool:
    """Whether it may be a row's own fault: it is wrong, or no version has an answer to it."""
    return not isinstance(error, Unavailable) or error.subject == "predictor"
