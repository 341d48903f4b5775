"""Secrets: sealed at rest with a key that only the platform's account can read, told to those who may use them, and to nobody in a list.

A secret belongs to who set it, and is told to members of its project only if it is shared. A changed or removed secret keeps
its old values, sealed, so that they go on being hidden in outputs. An old value is told, as of its time, to runs that began
before a change; who may not have the secret now, or one that is removed, gets none of them. Each reading of a value is in the
audit; no value ever is.
"""

from __future__ import annotations

from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import Connection, text

from cellwork import clock, files, ids, secrets
from cellwork.errors import NotFound, Refused, Unavailable
from cellwork.home import Home
from cellwork.wire.records import Principal
from cellwork.wire.secrets import Mask, Secret, SecretRequest, SecretValue
from cellwork_hub import records
from cellwork_hub.platform.state import State
from cellwork_hub.preparation import one_user
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE secrets (project TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, owner TEXT NOT NULL, shared INTEGER NOT NULL, sealed {blob} NOT NULL, "
    "at BIGINT NOT NULL, removed BIGINT, PRIMARY KEY (project, name, version))",
)
NEWEST = "SELECT * FROM secrets WHERE project = :project AND name = :name AND at <= :at AND removed IS NULL ORDER BY version DESC LIMIT 1"
"""A removal marks every version that is there: what is found has one owner, also where the name was another's before."""
LISTED = (
    "SELECT * FROM secrets s WHERE project = :project AND removed IS NULL AND version = "
    "(SELECT max(version) FROM secrets x WHERE x.project = s.project AND x.name = s.name) ORDER BY name"
)


def seal(home: Home) -> MultiFernet:
    """Return what seals values: the first key of the key file seals, each opens. The file is made when it is first needed."""
    path = home.secret("secrets-key")
    if not path.exists():
        files.write(path, Fernet.generate_key(), mode=0o600)
    return MultiFernet([Fernet(line) for line in files.read_secret(path).split()])


def who(state: State, principal: Principal) -> str:
    """Return for whom `principal` acts: in `personal` trust the platform's own command acts for its one user."""
    settings = state.context.settings
    return one_user(settings) if principal.kind == "service" and settings.trust == "personal" else principal.name


def put(state: State, call: Call) -> Secret:
    """Set the secret, or change it if it is the caller's; the same value twice changes nothing."""
    request: SecretRequest = call.body
    project, name = call.path["project"], ids.name(call.path["name"], "secret")
    secrets.check(request.value)
    with state.engine.begin() as db:
        found, me = _newest(db, project, name), who(state, call.principal)
        if found and found["owner"] != me:
            raise Refused(
                f"user {me!r}", name, f"is a secret of {found['owner']}", "choose another name, or ask its owner"
            )
        if found and _open(state, found) == request.value and bool(found["shared"]) == request.shared:
            return _told(found)
        last = db.execute(text("SELECT max(version) FROM secrets WHERE project = :p AND name = :n"), {"p": project, "n": name}).scalar()  # fmt: skip
        row = {
            "project": project, "name": name, "version": (last or 0) + 1, "owner": me, "shared": int(request.shared),
            "sealed": seal(state.home).encrypt(request.value.encode()), "at": records.micros(clock.now()), "removed": None,
        }  # fmt: skip
        db.execute(text(f"INSERT INTO secrets ({', '.join(row)}) VALUES ({', '.join(':' + c for c in row)})"), row)
        after = {"version": row["version"], "shared": request.shared}
        records.audit(db, call, "secret.set", f"{project}/{name}", after=after)
    return _told(row)


def read(state: State, call: Call) -> SecretValue:
    """Return the value, to its owner, or to members of the project if it is shared, now and at the time that is asked for."""
    as_of = call.query.get("as_of", "")
    at = records.micros(clock.utc(as_of)) if as_of else records.micros(clock.now())
    project, name, me = call.path["project"], call.path["name"], who(state, call.principal)
    with state.engine.begin() as db:
        found, now = _newest(db, project, name, at), _newest(db, project, name)
        if found is None or now is None or (now["owner"] != me and not (now["shared"] and found["shared"])):
            verdict = "is not there, or not yours" + (", or was set after this run began" if as_of else "")
            raise NotFound(
                "secret", f"{project}/{name}", verdict, "look at: cellwork secret list; or set it: cellwork secret set"
            )
        records.audit(
            db, call, "secret.read", f"{project}/{name}", after={"version": found["version"], "run": call.origin.run}
        )
    return SecretValue(value=_open(state, found), version=found["version"])


def remove(state: State, call: Call) -> None:
    project, name, me = call.path["project"], call.path["name"], who(state, call.principal)
    with state.engine.begin() as db:
        found = _newest(db, project, name)
        if found is None:
            raise NotFound("secret", f"{project}/{name}", "is not there", "look at: cellwork secret list")
        if found["owner"] != me and "admin" not in call.principal.scopes:
            raise Refused(f"user {me!r}", name, f"is a secret of {found['owner']}", "ask its owner, or an admin")
        change = "UPDATE secrets SET removed = :now WHERE project = :p AND name = :n AND removed IS NULL"
        db.execute(text(change), {"now": records.micros(clock.now()), "p": project, "n": name})
        records.audit(db, call, "secret.remove", f"{project}/{name}")


def listing(state: State, call: Call) -> list[Secret]:
    me = who(state, call.principal)
    with state.engine.connect() as db:
        rows = [dict(row) for row in db.execute(text(LISTED), {"project": call.path["project"]}).mappings()]
    return [_told(row) for row in rows if row["owner"] == me or row["shared"]]


def masks(state: State, call: Call) -> list[Mask]:
    """Return every value that a principal can use in a project, and what they were before: what its runs must hide."""
    query = "SELECT * FROM secrets WHERE project = :p AND (owner = :who OR shared = 1) ORDER BY name, version"
    with state.engine.connect() as db:
        rows = db.execute(text(query), {"p": call.path["project"], "who": call.path["principal"]}).mappings().all()
    return [Mask(name=row["name"], value=_open(state, dict(row))) for row in rows]


def _newest(db: Connection, project: str, name: str, at: int | None = None) -> dict[str, Any] | None:
    values = {"project": project, "name": name, "at": at or records.micros(clock.now())}
    row = db.execute(text(NEWEST), values).mappings().first()
    return dict(row) if row else None


def _open(state: State, row: dict[str, Any]) -> str:
    try:
        return seal(state.home).decrypt(bytes(row["sealed"])).decode()
    except InvalidToken:
        way_out = "bring back the key file of this installation (secrets/secrets-key), or set the secret again"
        raise Unavailable("secret", f"{row['project']}/{row['name']}", "was sealed with another key", way_out) from None


def _told(row: dict[str, Any]) -> Secret:
    return Secret(
        project=row["project"], name=row["name"], version=row["version"], owner=row["owner"], shared=bool(row["shared"]), at=records.moment(row["at"])
    )  # fmt: skip


def routes(state: State) -> list[Route]:
    one = "/api/v1/secrets/{project}/{name}"
    return [
        Route("PUT", one, lambda c: put(state, c), scope="secrets:write", body=SecretRequest, answer=Secret, doc="Set or change a secret of yours."),
        Route("GET", one, lambda c: read(state, c), scope="secrets:read", answer=SecretValue, doc="The value of a secret you may use; `as_of` a time."),
        Route("DELETE", one, lambda c: remove(state, c), scope="secrets:write", doc="Remove a secret; its values go on being hidden."),
        Route("GET", "/api/v1/secrets/{project}", lambda c: listing(state, c), scope="secrets:read", answer=list[Secret], doc="The secrets you may use, without their values."),
        Route("GET", "/api/v1/masks/{project}/{principal}", lambda c: masks(state, c), scope="secrets:mask", answer=list[Mask], doc="What a principal's runs must hide."),
    ]  # fmt: skip
