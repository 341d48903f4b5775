"""Keeps fitted transformers: immutable, under the id that is a hash of what they do. Keeping one twice changes nothing."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import text

from cellwork import clock, ids
from cellwork.errors import BadInput, Conflict, NotFound
from cellwork.features import transform
from cellwork.wire.transformers import Transformer
from cellwork_hub import records
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE transformers (seq {serial}, id TEXT NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL, record {json} NOT NULL, "
    "UNIQUE (project, name, id))",
)


def keep(state: State, call: Call, project: str, sent: Transformer) -> Transformer:
    """Keep a fitted transformer; what is there under its name and id stays as it was.

    Raises
    ------
    BadInput
        Its id is not that of its steps.
    """
    ids.name(sent.name, "name of the transformer")
    content = transform.identified(sent).id
    if sent.id not in ("", content):
        raise BadInput(
            "transformer", sent.id, f"is not what its id says ({content} would be)", "send it as it was fitted"
        )
    record = msgspec.structs.replace(sent, id=content, project=project, at=clock.now(), origin=call.origin)
    with state.engine.begin() as db:
        values = {"id": content, "p": project, "n": record.name, "r": msgspec.json.encode(record).decode()}
        insert = "INSERT INTO transformers (id, project, name, record) VALUES (:id, :p, :n, :r) ON CONFLICT (project, name, id) DO NOTHING"
        if db.execute(text(insert), values).rowcount:
            if record.dataset:
                records.edge(db, content, "built_from", ids.check(record.dataset, "ds"))
            if record.origin.run:
                records.edge(db, content, "made_by", record.origin.run)
            records.audit(db, call, "transformer.keep", f"{project}/{record.name}", after={"id": content})
    return _select(state, "project = :p AND name = :n AND id = :id", p=project, n=record.name, id=content)[0]


def get(state: State, project: str, transformer: str) -> Transformer:
    """Return a transformer of `project`, which is checked against its id. Raises NotFound, or Conflict if it was changed."""
    found = _select(state, "project = :p AND id = :id", p=project, id=ids.check(transformer, "tf"))
    if not found:
        raise NotFound(f"transformer of project {project!r}", transformer, "does not exist", "list them first")
    if transform.identified(found[0]).id != transformer:
        raise Conflict(
            "transformer", transformer, "was changed in the database", "restore it from a backup, or fit anew"
        )
    return found[0]


def _select(state: State, where: str, **values: Any) -> list[Transformer]:
    with state.engine.connect() as db:
        rows = db.execute(text(f"SELECT record FROM transformers WHERE {where} ORDER BY seq"), values)
        return [msgspec.json.decode(row[0], type=Transformer) for row in rows]


def routes(state: State) -> list[Route]:
    def put_transformer(call: Call) -> Transformer:
        return keep(state, call, ids.name(call.path["project"], "project"), call.body)

    def list_transformers(call: Call) -> list[Transformer]:
        return _select(state, "project = :p", p=call.path["project"])

    def get_transformer(call: Call) -> Transformer:
        return get(state, call.path["project"], call.path["transformer"])

    return [
        Route("PUT", "/api/v1/transformers/{project}", put_transformer, scope="features:write", body=Transformer, answer=Transformer, doc="Keep fitted steps under the id of what they do."),
        Route("GET", "/api/v1/transformers/{project}", list_transformers, scope="features:read", answer=list[Transformer], doc="The transformers of a project, oldest first."),
        Route("GET", "/api/v1/transformers/{project}/{transformer}", get_transformer, scope="features:read", answer=Transformer, doc="One transformer."),
    ]  # fmt: skip
