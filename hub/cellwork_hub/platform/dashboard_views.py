"""What published dashboards last showed: kept for the server that made it, and for the hub while no server runs (`cellwork_hub.views`).

Only the owner's own server brings and fetches views; who looks gets them from that server or from the hub, which know whom the page is
shared with. A view belongs to an edition, the time of its publishing: what a server of an earlier one brings is refused. Order of writes: a new
edition is in the database before the views of the one before end, and a view is in its file before the edition is looked at again.
"""

from __future__ import annotations

from cellwork import clock, ids
from cellwork.errors import Conflict, NotFound
from cellwork.wire.dashboards import Published
from cellwork_hub import views
from cellwork_hub.platform.dashboards import mine
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = ("ALTER TABLE dashboards ADD COLUMN profile TEXT NOT NULL DEFAULT ''",)
"""Of the table of `dashboards`, whose own number is taken."""
MOST_ASKED = 4096
"""Characters of a page and query; longer ones are not kept."""


def keep(state: State, call: Call, held: Published) -> None:
    asked = call.required("asked")[:MOST_ASKED]
    if clock.utc(call.required("edition")) != held.at:
        raise _earlier(held)
    folder = state.home.views(held.owner, held.server)
    views.keep(folder, asked, clock.now(), call.body)
    try:
        now = mine(state, call, held.project, held.name)
    except NotFound:
        views.forget(folder)
        raise
    if now.at != held.at:
        views.forget(folder)
        raise _earlier(held)


def _earlier(held: Published) -> Conflict:
    return Conflict("edition of dashboard", f"{held.project}/{held.name}", "is not the one that is published", "it needs no view any more")  # fmt: skip


def find(state: State, call: Call, held: Published) -> bytes:
    found = views.find(state.home.views(held.owner, held.server), call.required("asked")[:MOST_ASKED])
    if found is None:
        raise NotFound("view", call.query["asked"][:80], "is not kept", "open the page when it can be made")
    call.media_type = "text/html"
    call.answer_headers["x-cellwork-made"] = found.about.made.isoformat()
    call.answer_headers["content-disposition"] = "attachment"
    return found.page


def routes(state: State) -> list[Route]:
    def held(call: Call) -> Published:
        return mine(state, call, ids.name(call.path["project"], "project"), ids.name(call.path["name"], "dashboard"))

    def put(call: Call) -> None:
        keep(state, call, held(call))

    def read(call: Call) -> bytes:
        return find(state, call, held(call))

    one = "/api/v1/dashboards/{project}/{name}/view"
    return [
        Route("PUT", one, put, "monitors:write", bytes, None, "Keep what a dashboard shows (?asked=…&edition=…), for when it can't be made."),
        Route("GET", one, read, "monitors:read", None, bytes, "What a dashboard last showed (?asked=…), for its owner."),
    ]  # fmt: skip
