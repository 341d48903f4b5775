"""How an endpoint's rule for strange values is set: part of the route table, changed and audited as routes are."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from anyio import to_thread

from cellwork.serving import inputs
from cellwork.wire.endpoints import InputWish
from cellwork_hub.inference import table as tables
from cellwork_hub.inference.deploy import Endpoints, there
from cellwork_hub.inference.table import Entry
from cellwork_hub.route import Call


async def put(endpoints: Endpoints, call: Call, endpoint: str, wish: InputWish) -> Entry:
    """Give the endpoint a rule, or none; the same again changes nothing. Raises BadInput, Conflict."""
    before = await to_thread.run_sync(endpoints.table.require, endpoint)
    tables.check_seen(endpoint, wish.revision, before)
    plan = before.live.plan
    rule = inputs.check(wish.rule, {column.name: column.kind for column in plan.columns}) if wish.rule else None
    if rule == before.beside.input:
        return before

    def ruled(entry: Entry | None) -> Entry:
        now = there(entry)
        return replace(now, revision=now.revision + 1, beside=msgspec.structs.replace(now.beside, input=rule))

    return await endpoints.change(
        call, endpoint, before.revision, ruled, None, action="endpoint.input", reason=wish.reason
    )
