"""Splits of datasets: recipes and digests, kept with who made them and when. The rows themselves stay in the dataset."""

from __future__ import annotations

import re

import msgspec
from sqlalchemy import text

from cellwork import clock
from cellwork.errors import BadInput, NotFound
from cellwork.wire.datasets import KeptSplit, SplitRequest
from cellwork_hub import records
from cellwork_hub.platform import datasets
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE splits (seq {serial}, dataset TEXT NOT NULL, digest TEXT NOT NULL, record {json} NOT NULL, UNIQUE (dataset, digest))",
)


def keep(state: State, call: Call, dataset: str, request: SplitRequest) -> KeptSplit:
    """Return the stored split; the first one with a digest stays."""
    about = datasets.get(state, dataset)
    if not re.fullmatch(r"[0-9a-f]{64}", request.digest):
        raise BadInput(
            "digest of the split", request.digest, "is not 64 hex digits", "send what cellwork.data.split made"
        )
    made = KeptSplit(dataset=about.id, at=clock.now(), origin=call.origin, **msgspec.structs.asdict(request))
    with state.engine.begin() as db:
        values = {"dataset": about.id, "digest": request.digest, "record": msgspec.json.encode(made).decode()}
        insert = (
            "INSERT INTO splits (dataset, digest, record) VALUES (:dataset, :digest, :record) ON CONFLICT DO NOTHING"
        )
        if db.execute(text(insert), values).rowcount:
            after = {"digest": request.digest, "rows": request.rows}
            records.audit(db, call, "dataset.split", f"{about.project}/{about.name}", after=after)
            return made
    return get(state, about.id, request.digest)


def get(state: State, dataset: str, digest: str) -> KeptSplit:
    found = _select(state, "dataset = :dataset AND digest = :digest", dataset=dataset, digest=digest)
    if not found:
        raise NotFound("split", digest, f"of dataset {dataset} is not kept", "keep it: cellwork.data.split.keep(made)")
    return found[0][1]


def _select(state: State, where: str, limit: int = 1, **values: object) -> list[tuple[int, KeptSplit]]:
    with state.engine.connect() as db:
        rows = db.execute(text(f"SELECT seq, record FROM splits WHERE {where} ORDER BY seq LIMIT {int(limit)}"), values)
        return [(row.seq, msgspec.json.decode(row.record, type=KeptSplit)) for row in rows]


def routes(state: State) -> list[Route]:
    def entered(call: Call) -> str:
        dataset = datasets.get(state, call.path["dataset"])
        call.enter(dataset.project)
        return dataset.id

    def post_split(call: Call) -> KeptSplit:
        return keep(state, call, entered(call), call.body)

    def list_splits(call: Call) -> list[KeptSplit]:
        limit, after = call.limit(100, 1000), call.number("cursor", 0)
        dataset = entered(call)
        found = _select(state, "dataset = :dataset AND seq > :after", limit, dataset=dataset, after=after)
        if len(found) == limit:
            call.next_page(str(found[-1][0]))
        return [record for _, record in found]

    def get_split(call: Call) -> KeptSplit:
        return get(state, entered(call), call.path["digest"])

    splits = "/api/v1/datasets/{dataset}/splits"
    return [
        Route("POST", splits, post_split, scope="data:write", body=SplitRequest, answer=KeptSplit, doc="Keep a split's recipe and digest with its dataset."),
        Route("GET", splits, list_splits, scope="data:read", answer=list[KeptSplit], doc="Splits kept with a dataset, oldest first."),
        Route("GET", splits + "/{digest}", get_split, scope="data:read", answer=KeptSplit, doc="One kept split."),
    ]  # fmt: skip
