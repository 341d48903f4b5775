"""Projects and their members. Whoever may write data makes a project and is its first member; members and admins let others in.

The hub carries a user's projects as groups, and every service checks them (`Call.enter`); a change holds within a minute.
"""

from __future__ import annotations

from sqlalchemy import Connection

from cellwork import ids
from cellwork.errors import NotFound, Refused
from cellwork.wire.users import Members
from cellwork_hub import records
from cellwork_hub.platform import people
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MAKE = "INSERT INTO projects VALUES (:name, :now) ON CONFLICT (name) DO NOTHING"
JOIN = "INSERT INTO project_members VALUES (:project, :member) ON CONFLICT (project, member) DO NOTHING"
LEAVE = "DELETE FROM project_members WHERE project = :project AND member = :member"


def create(state: State, call: Call, project: str) -> Members:
    """Return the project, made if it is not there; who makes it is its first member."""
    ids.name(project, "project")
    with state.engine.begin() as db:
        made = people.write(db, MAKE, name=project, now=people.now())
        if made:
            if call.principal.kind == "user":
                people.write(db, JOIN, project=project, member=call.principal.name)
            records.audit(db, call, "project.create", project, after=call.principal.name)
        check_inside(db, call, project)
        after = people.members(db, project)
    if made:
        people.settle()
    return after


def check_inside(db: Connection, call: Call, project: str) -> None:
    """Raise NotFound unless the caller is an admin, a service or a member: of others' projects one does not learn the names."""
    known = people.rows(db, "SELECT name FROM projects WHERE name = :name", name=project)
    if not known or not _inside(db, call, project):
        raise NotFound(
            "project", project[:80], "does not exist, or is not yours", "ask a member of it, or choose another name"
        )


def _inside(db: Connection, call: Call, project: str) -> bool:
    if call.principal.kind == "service" or "admin" in call.principal.scopes:
        return True
    groups = [group["name"] for group in people.groups_of(db, call.principal.name)]
    return project in people.projects_of(db, call.principal.name, groups)


def set_member(state: State, call: Call, project: str, member: str, *, inside: bool) -> Members:
    """Let `member` (a user, or ``@group``) in, or out. The last one may not leave: nobody could come back."""
    with state.engine.begin() as db:
        check_inside(db, call, project)
        if inside:
            _check_member(db, member)
        elif people.members(db, project).members == [member]:
            raise Refused(
                "project", project, f"would have nobody left without {member!r}", "let somebody else in first"
            )
        changed = people.write(db, JOIN if inside else LEAVE, project=project, member=member)
        if changed:
            records.audit(db, call, "project.join" if inside else "project.leave", project, after=member)
        after = people.members(db, project)
    if changed:
        people.settle()
    return after


def _check_member(db: Connection, member: str) -> None:
    if member.startswith("@"):
        people.group(db, member.removeprefix("@"))
    else:
        people.require(db, member)


def routes(state: State) -> list[Route]:
    def listing(call: Call) -> list[Members]:
        with state.engine.connect() as db:
            names = [row["name"] for row in people.rows(db, "SELECT name FROM projects ORDER BY name")]
            return [people.members(db, name) for name in names if _inside(db, call, name)]

    def put(call: Call) -> Members:
        return create(state, call, call.path["project"])

    def join(call: Call) -> Members:
        return set_member(state, call, call.path["project"], call.path["member"], inside=True)

    def leave(call: Call) -> Members:
        return set_member(state, call, call.path["project"], call.path["member"], inside=False)

    one, person = "/api/v1/projects/{project}", "/api/v1/projects/{project}/members/{member}"
    return [
        Route("GET", "/api/v1/projects", listing, "data:read", answer=list[Members], doc="The caller's projects; an admin's are all.", within="platform"),
        Route("PUT", one, put, "data:write", answer=Members, doc="Make a project; who makes it is its first member.", within="platform"),
        Route("PUT", person, join, "data:write", answer=Members, doc="Let a user or `@group` in.", within="platform"),
        Route("DELETE", person, leave, "data:write", answer=Members, doc="Take a member out.", within="platform"),
    ]  # fmt: skip
