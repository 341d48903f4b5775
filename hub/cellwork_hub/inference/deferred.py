"""Predictions that are asked for now and answered later: submitted, polled, or pushed to a webhook.

    submitted --answered--> done --told--> told       (without a webhook it stays done)
        |                     `--not told, ever later, a last time--> given up
        +--a wrong request, or no version answers for long--> failed, and told so

A submission is in the table before it is acknowledged. Its id is the request's idempotency key, so one that was answered when the service was
killed gets that answer again, from the prediction log: answered at least once, logged once. Webhooks get the submission, signed as all of
this installation's (`cellwork.notify`), at least once; only hosts of the setting `webhook_hosts` are called, for who submits is not
who owns this network. One process drives; a second one, while the first is renewed, changes nothing. What fails while another process
has changed the endpoint's routes, and this one has not taken them over yet, is asked again. Endpoints take turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec
from anyio import to_thread
from sqlalchemy import Engine, text

from cellwork import clock, ids, notify
from cellwork.errors import CellworkError, NotFound, Refused, TooBusy, Unavailable
from cellwork.home import Home
from cellwork.wire import Problem
from cellwork.wire.endpoints import Answer, Request, Submission, Submit
from cellwork_hub import records
from cellwork_hub.inference.deploy import Endpoints
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork")

MIGRATION = (
    "CREATE TABLE submissions (seq {serial}, id TEXT NOT NULL UNIQUE, endpoint TEXT NOT NULL, caller TEXT NOT NULL, at BIGINT NOT NULL, "
    "request {json} NOT NULL, webhook TEXT NOT NULL, state TEXT NOT NULL, answer {json} NOT NULL, problem {json} NOT NULL, "
    "due BIGINT, tries INTEGER NOT NULL DEFAULT 0)",
    "CREATE INDEX submissions_due ON submissions (due) WHERE due IS NOT NULL",
)
LOOK_SECONDS = 0.5
AT_ONCE = 32
MOST_WAITING = 10_000
"""Submissions of one endpoint that may wait for their answer."""
KEPT = timedelta(days=7)


class Deferred:
    """The submissions of a service. `wake` is set when one comes."""

    def __init__(self, engine: Engine, endpoints: Endpoints, home: Home, hosts: str) -> None:
        """`hosts` may be called by webhooks: names, or names with ports, by comma."""
        self.engine, self.endpoints, self.home = engine, endpoints, home
        self.hosts = {host.strip() for host in hosts.split(",")} - {""}
        self.wake = asyncio.Event()

    def submit(self, endpoint: str, wish: Submit, caller: str) -> Submission:
        """Keep `wish`; raises BadInput, NotFound, Refused for a host that may not be called, TooBusy."""
        self._check(endpoint, wish)
        made = Submission(
            id=ids.new("sub"), endpoint=endpoint, caller=caller, at=clock.now(), webhook=_host(wish.webhook)
        )
        with self.engine.begin() as db:
            waiting = "SELECT count(*) FROM submissions WHERE endpoint = :endpoint AND state = 'submitted'"
            if db.execute(text(waiting), {"endpoint": endpoint}).scalar_one() >= MOST_WAITING:
                raise TooBusy("endpoint", endpoint, f"has {MOST_WAITING} submissions waiting", "submit later")
            db.execute(
                text(
                    "INSERT INTO submissions (id, endpoint, caller, at, request, webhook, state, answer, problem, due) "
                    "VALUES (:id, :endpoint, :caller, :at, :request, :webhook, 'submitted', 'null', 'null', :at)"
                ),
                {
                    "id": made.id, "endpoint": endpoint, "caller": caller, "at": records.micros(made.at),
                    "request": msgspec.json.encode(wish.request).decode(), "webhook": wish.webhook,
                },
            )  # fmt: skip
        return made

    def _check(self, endpoint: str, wish: Submit) -> None:
        self.endpoints.get(endpoint).admit(wish.request)
        if not wish.webhook:
            return
        notify.check_address(wish.webhook)
        parts = urlsplit(wish.webhook)
        if not {parts.hostname, parts.netloc} & self.hosts:
            raise Refused(
                "webhook", parts.netloc, "is no host that may be called", "ask an admin: setting webhook_hosts"
            )

    def get(self, submission: str) -> Submission:
        with self.engine.connect() as db:
            query = text("SELECT * FROM submissions WHERE id = :id")
            row = db.execute(query, {"id": ids.check(submission, "sub")}).mappings().first()
        if row is None:
            raise NotFound("submission", submission, "is not known", "submissions are kept for a week")
        return _submission(dict(row))

    async def drive(self) -> None:
        """Answer and tell what is due, for ever."""
        await asyncio.gather(self._each("submitted", self._answer), self._each("done", self._tell), self._forget())

    async def _each(self, state: str, work: Callable[[dict[str, Any]], Any]) -> None:
        while True:
            rows = await self._safely(to_thread.run_sync(self._due, state)) or []
            results = await asyncio.gather(*(work(row) for row in rows), return_exceptions=True)
            failed = [result for result in results if isinstance(result, Exception)]
            if failed:
                log.error("%d submissions could not be worked on; tried again soon", len(failed), exc_info=failed[0])
            if failed or len(rows) < AT_ONCE:
                await self._rest(state)

    async def _rest(self, state: str) -> None:
        if state != "submitted":
            return await asyncio.sleep(LOOK_SECONDS)
        try:
            await asyncio.wait_for(self.wake.wait(), LOOK_SECONDS)
        except TimeoutError:
            return None
        return self.wake.clear()

    async def _safely(self, work: Any) -> Any:
        try:
            return await work
        except Exception:  # the database may be away for a moment; what is due stays due
            log.exception("submissions could not be read; tried again soon")
            await asyncio.sleep(LOOK_SECONDS)

    def _due(self, state: str) -> list[dict[str, Any]]:
        """Return the oldest of each endpoint, then the next of each: many of one do not hold up another's."""
        due = "due <= :now AND (state = :state OR (:state = 'done' AND state = 'failed'))"
        turns = (
            f"SELECT seq, row_number() OVER (PARTITION BY endpoint ORDER BY seq) AS turn FROM submissions WHERE {due}"
        )
        taken = f"SELECT seq FROM ({turns}) AS turns ORDER BY turn, seq LIMIT :most"
        query = f"SELECT * FROM submissions WHERE seq IN ({taken}) ORDER BY seq"
        with self.engine.connect() as db:
            values = {"now": records.micros(clock.now()), "state": state, "most": AT_ONCE}
            return [dict(row) for row in db.execute(text(query), values).mappings()]

    async def _answer(self, row: dict[str, Any]) -> None:
        request = msgspec.json.decode(row["request"], type=Request)
        request = msgspec.structs.replace(request, id=request.id or row["id"])
        now, told = records.micros(clock.now()), records.micros(clock.now()) if row["webhook"] else None
        seen = self.endpoints.revision(row["endpoint"])
        try:
            answer = await self.endpoints.get(row["endpoint"]).predict(request, row["caller"])
            await self._keep(row, state="done", answer=answer, due=told, tries=0)
        except CellworkError as error:
            later = isinstance(error, (TooBusy, Unavailable)) or await self._is_behind(row["endpoint"], seen)
            wait = notify.wait(row["tries"] + 1) if later else None
            if wait is not None:
                await self._keep(row, state="submitted", due=now + wait, tries=row["tries"] + 1)
            else:
                await self._keep(row, state="failed", problem=_problem(error), due=told, tries=0)

    async def _is_behind(self, endpoint: str, seen: int) -> bool:
        """Whether the table says something newer of `endpoint` than the revision `seen`, by which it was asked."""
        revisions = await to_thread.run_sync(self.endpoints.table.revisions)
        return revisions.get(endpoint, 0) > seen

    async def _tell(self, row: dict[str, Any]) -> None:
        said = msgspec.to_builtins(_submission(row))
        try:
            await to_thread.run_sync(notify.post, self.home, row["webhook"], said)
            await self._keep(row, state=row["state"], due=None, tries=0, webhook="")
        except Unavailable as error:
            wait = notify.wait(row["tries"] + 1)
            log.warning("submission %s was not told: %s", row["id"], error)
            due = None if wait is None else records.micros(clock.now()) + wait
            await self._keep(row, state=row["state"], due=due, tries=row["tries"] + 1)

    async def _keep(
        self, row: dict[str, Any], *, state: str, due: int | None, tries: int, answer: Answer | None = None,
        problem: Problem | None = None, webhook: str | None = None,
    ) -> None:  # fmt: skip
        values = {
            "id": row["id"], "was": row["state"], "state": state, "due": due, "tries": tries,
            "webhook": row["webhook"] if webhook is None else webhook,
            "answer": msgspec.json.encode(answer).decode() if answer else row["answer"],
            "problem": msgspec.json.encode(problem).decode() if problem else row["problem"],
        }  # fmt: skip

        def write() -> None:
            with self.engine.begin() as db:
                db.execute(
                    text(
                        "UPDATE submissions SET state = :state, due = :due, tries = :tries, answer = :answer, problem = :problem, "
                        "webhook = :webhook WHERE id = :id AND state = :was"
                    ),
                    values,
                )

        await to_thread.run_sync(write)

    async def _forget(self) -> None:
        """Remove what was answered a week ago; its predictions stay in their log."""

        def remove() -> None:
            with self.engine.begin() as db:
                db.execute(
                    text("DELETE FROM submissions WHERE state <> 'submitted' AND at < :old"),
                    {"old": records.micros(clock.now() - KEPT)},
                )

        while True:
            await self._safely(to_thread.run_sync(remove))
            await asyncio.sleep(3600)


def _problem(error: CellworkError) -> Problem:
    return Problem(
        type=type(error).__name__,
        subject=error.subject,
        value=error.value,
        verdict=error.verdict,
        way_out=error.way_out,
    )


def _host(webhook: str) -> str:
    """Return a webhook as others may see it: behind its host may stand a secret."""
    return urlsplit(webhook).netloc if webhook else ""


def _submission(row: dict[str, Any]) -> Submission:
    return Submission(
        id=row["id"], endpoint=row["endpoint"], caller=row["caller"], at=records.moment(row["at"]), state=row["state"],
        answer=msgspec.json.decode(row["answer"], type=Answer | None), problem=msgspec.json.decode(row["problem"], type=Problem | None),
        webhook=_host(row["webhook"]),
    )  # fmt: skip


def routes(deferred: Deferred) -> list[Route]:
    async def submit(call: Call) -> Submission:
        name = "/".join(ids.split_name(f"{call.path['project']}/{call.path['name']}"))
        made = await to_thread.run_sync(deferred.submit, name, call.body, call.principal.name)
        deferred.wake.set()
        return made

    def get(call: Call) -> Submission:
        found = deferred.get(call.path["submission"])
        call.enter(found.endpoint.partition("/")[0])
        return found

    return [
        Route("POST", "/predict/async/{project}/{name}", submit, "endpoints:predict", Submit, Submission, "Score rows later: the answer is polled, or pushed to a webhook.", status=202),
        Route("GET", "/predict/async/{submission}", get, "endpoints:predict", None, Submission, "A submission and, when there is one, its answer."),
    ]  # fmt: skip
