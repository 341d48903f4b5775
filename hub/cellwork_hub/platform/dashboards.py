"""Dashboards that users publish: what runs, as whom, and for whom.

A name belongs to whoever published it first, until it is taken down: nobody else's notebook ever runs under it, for it runs with its
owner's rights (`cellwork_hub.published`). Members of the project see that it is there; only its owner reads what runs. With each
publishing, and when it is taken down, what it showed before ends (`cellwork_hub.views`).
"""

from __future__ import annotations

import hashlib
import json

import msgspec
from sqlalchemy import text

from cellwork import clock, ids
from cellwork.errors import BadInput, Conflict, NotFound, Refused, Unavailable
from cellwork.wire.dashboards import Published, PublishedContent, PublishRequest
from cellwork_hub import preparation, profiles, records, views
from cellwork_hub.containers import way
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE dashboards (project TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, shared_with TEXT NOT NULL, notebook TEXT NOT NULL, "
    "sha256 TEXT NOT NULL, at BIGINT NOT NULL, content TEXT NOT NULL, files {json} NOT NULL, PRIMARY KEY (project, name))",
)
COLUMNS = "project, name, owner, shared_with, notebook, sha256, at, profile"


def publish(state: State, call: Call, project: str, name: str) -> Published:
    request: PublishRequest = call.body
    owner, group = _owner(state, call), request.group
    _check(request)
    _check_profile(state, call, request.profile)
    if group and call.bounded and group not in call.principal.groups:
        raise Refused("group", group, "is not one of yours", "share with a group or project that you are in")
    held = _held(state, project, name)
    if held and held.owner != owner:
        raise Conflict("dashboard", f"{project}/{name}", f"is {held.owner}'s", "choose another name")
    about = Published(
        project=project, name=name, owner=owner, group=group, notebook=request.notebook,
        sha256=hashlib.sha256(request.content.encode()).hexdigest(), at=clock.now(), profile=request.profile,
    )  # fmt: skip
    values = {
        **msgspec.structs.asdict(about),
        "at": micros(about.at),
        "content": request.content,
        "files": json.dumps(request.files),
    }
    with state.engine.begin() as db:
        done = db.execute(
            text(
                f"INSERT INTO dashboards ({COLUMNS}, content, files) VALUES (:project, :name, :owner, :group, :notebook, :sha256, :at, :profile, :content, :files) "
                "ON CONFLICT (project, name) DO UPDATE SET shared_with = excluded.shared_with, notebook = excluded.notebook, sha256 = excluded.sha256, "
                "at = excluded.at, profile = excluded.profile, content = excluded.content, files = excluded.files WHERE dashboards.owner = excluded.owner"
            ),
            values,
        )
        if not done.rowcount:  # somebody else was quicker
            raise Conflict("dashboard", f"{project}/{name}", "is somebody else's", "choose another name")
        records.audit(db, call, "dashboard.publish", f"{project}/{name}", before=held, after=about)
    views.forget(state.home.views(owner, about.server))
    return about


def _owner(state: State, call: Call) -> str:
    """Return as whom it will run: whoever asks, and nobody else; the platform's own token speaks for the one user of `personal` trust."""
    if call.principal.kind == "user":
        return call.principal.name
    if state.context.settings.trust == "team":
        raise Refused(
            f"{call.principal.kind} {call.principal.name!r}",
            "",
            "can't own a dashboard",
            "publish it from a notebook or terminal of your own",
        )
    return preparation.one_user(state.context.settings)


def _check_profile(state: State, call: Call, name: str) -> None:
    """Raise unless the owner may have a server of this profile, and there are such servers here."""
    if not name:
        return
    groups = {group.removeprefix("group:") for group in call.principal.groups} if call.bounded else None
    profiles.choose(profiles.load(state.home.profiles()), name, groups)
    if way.known(state.home).kind != "containers":
        raise Unavailable(
            "profile", name, "is of servers in containers, and there is no container engine here",
            "publish without --profile, or start the platform where cellwork doctor finds an engine",
        )  # fmt: skip


def _check(request: PublishRequest) -> None:
    try:
        content = json.loads(request.content)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise BadInput("notebook", request.notebook, "is no notebook", "publish an .ipynb file")
    for path in request.files:
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise BadInput("file beside the notebook", path, "does not lie beside it", "name files below its folder")


def _held(state: State, project: str, name: str) -> Published | None:
    found = _select(state, "project = :p AND name = :n", p=project, n=name)
    return found[0] if found else None


def _select(state: State, where: str, **values: str) -> list[Published]:
    with state.engine.connect() as db:
        rows = (
            db.execute(text(f"SELECT {COLUMNS} FROM dashboards WHERE {where} ORDER BY project, name"), values)
            .mappings()
            .all()
        )
    return [
        Published(
            project=row["project"], name=row["name"], owner=row["owner"], group=row["shared_with"], notebook=row["notebook"],
            sha256=row["sha256"], at=moment(row["at"]), profile=row["profile"],
        )
        for row in rows
    ]  # fmt: skip


def mine(state: State, call: Call, project: str, name: str) -> Published:
    """Return the record if the caller may read or remove what runs: its owner, and in `personal` trust the platform itself."""
    held = _held(state, project, name)
    if held is None:
        raise NotFound("dashboard", f"{project}/{name}", "is not published", "look at: cellwork dashboard list")
    platform = call.principal.kind == "service" and state.context.settings.trust != "team"
    if held.owner != call.principal.name and not platform:
        raise Refused("dashboard", f"{project}/{name}", f"is {held.owner}'s", "ask them")
    return held


def remove(state: State, call: Call, project: str, name: str) -> None:
    held = mine(state, call, project, name)
    with state.engine.begin() as db:
        db.execute(text("DELETE FROM dashboards WHERE project = :p AND name = :n"), {"p": project, "n": name})
        records.audit(db, call, "dashboard.unpublish", f"{project}/{name}", before=held)
    views.forget(state.home.views(held.owner, held.server))


def routes(state: State) -> list[Route]:
    def named(call: Call) -> tuple[str, str]:
        return ids.name(call.path["project"], "project"), ids.name(call.path["name"], "dashboard")

    def put(call: Call) -> Published:
        return publish(state, call, *named(call))

    def read(call: Call) -> PublishedContent:
        held = mine(state, call, *named(call))
        with state.engine.connect() as db:
            query = text("SELECT content, files FROM dashboards WHERE project = :p AND name = :n")
            row = db.execute(query, {"p": held.project, "n": held.name}).one()
        return PublishedContent(about=held, content=row.content, files=json.loads(row.files))

    def delete(call: Call) -> None:
        remove(state, call, *named(call))

    def listing(call: Call) -> list[Published]:
        call.may_enter("")
        found = _select(state, "(:p = '' OR project = :p)", p=call.query.get("project", ""))
        return [each for each in found if call.may_enter(each.project)]

    one = "/api/v1/dashboards/{project}/{name}"
    return [
        Route("GET", "/api/v1/dashboards", listing, "monitors:read", None, list[Published], "Dashboards that users published."),
        Route("PUT", one, put, "monitors:write", PublishRequest, Published, "Publish a notebook that runs as the caller for a group."),
        Route("GET", one, read, "monitors:read", None, PublishedContent, "What runs under a name, for its owner."),
        Route("DELETE", one, delete, "monitors:write", None, None, "Take a dashboard down."),
    ]  # fmt: skip
