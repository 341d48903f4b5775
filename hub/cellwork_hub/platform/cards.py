"""Model cards: put together when asked, from records that only grow and a folder that its digest holds; nobody edits a card.

So a card needs no copy that could differ from the truth, and one asked for years later still says what was true.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import text

from cellwork import errors, ids
from cellwork.client import Client
from cellwork.errors import BadInput, CellworkError
from cellwork.models import card as cards
from cellwork.models import environment, package, tracking, versions
from cellwork.models.versions import Version
from cellwork.wire.cards import Asked, Card, Trained
from cellwork.wire.evaluations import Evaluation
from cellwork.wire.gate import Promoted, Trusted
from cellwork_hub.platform import code_trust, gate_rules, promotion, scoring
from cellwork_hub.platform.judgements import select
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = ()
ORIGIN = ("user", "project", "notebook", "cell_id", "source_sha256", "run", "git_commit", "image_digest", "env")
FORMATS = {"markdown": "text/markdown; charset=utf-8", "html": "text/html; charset=utf-8"}


def card(state: State, name: str, number: int) -> Card:
    """Return the card of a version; raises NotFound if there is none. What of it can't be read stands in `gaps`."""
    with state.context.client("cellwork") as client:
        version = versions.get(client, name, number)
        version.aliases = sorted(alias for alias, at in versions.aliases(client, name).items() if at == number)
        kept, tags = gate_rules.kept(state, ids.split_name(name)[0]), version.tags
        evaluations = select(state, "name = :n AND version = :v", 100, n=name, v=number)
        folder, gaps = _folder(state, client, version)
        training = _training(client, version, gaps)
        return Card(
            version=version.ref, registered=version.at, description=version.description, aliases=version.aliases,
            owner=tags.get("owner") or kept.owner or tags.get("user", ""), contact=tags.get("contact") or kept.contact,
            origin={key: tags[key] for key in ORIGIN if tags.get(key)}, training_run=version.run, split=tags.get("split", ""),
            dataset=_trained(state, version, gaps), baseline=tags.get("baseline", ""), evaluations=evaluations,
            questions=_questions(state, version, evaluations), overrides=gate_rules.overrides(state, version.ref),
            moves=_moves(state, version), gaps=gaps, **folder, **training,
        )  # fmt: skip


def _folder(state: State, client: Client, version: Version) -> tuple[dict[str, Any], list[str]]:
    """Return what the version's files say, and why they can't be read if they can't."""
    try:
        folder = scoring.copy(state, client, version)
        manifest = package.read(folder)
    except CellworkError as error:
        return {
            "kind": "",
            "columns": [],
            "transformers": [],
            "code": [],
            "python": "",
            "environment": [],
            "size_bytes": 0,
        }, [str(error)]
    project = version.name.partition("/")[0]
    words = [
        word
        if isinstance(word, Trusted)
        else Trusted(
            project=project, sha256=word.sha256, file=Path(word.file).name, version=version.ref, by="", at=version.at
        )
        for word in code_trust.found(state, project, folder)
    ]
    return {
        "code": words, "kind": manifest.kind, "columns": [f"{c.name} ({c.kind})" for c in manifest.columns], "transformers": manifest.transformers,
        "python": environment.python(folder), "environment": environment.read(folder), "size_bytes": scoring.size(folder),
    }, []  # fmt: skip


def _training(client: Client, version: Version, gaps: list[str]) -> dict[str, Any]:
    """Return parameters and metrics of the training run."""
    try:
        data = tracking.get(client, "/runs/get", run_id=version.run)["run"].get("data", {})
    except CellworkError as error:
        gaps.append(str(error))
        data = {}
    parameters = {row["key"]: row["value"] for row in data.get("params", [])}
    return {
        "parameters": parameters,
        "validation": {row["key"]: float(row["value"]) for row in data.get("metrics", [])},
    }


def _trained(state: State, version: Version, gaps: list[str]) -> Trained | None:
    try:
        found = scoring.trained_on(state, version)
    except errors.Refused as error:
        gaps.append(str(error))
        return None
    query = (
        "SELECT target FROM edges WHERE source = :d AND relation = 'built_from' AND target LIKE 'fset%' ORDER BY target"
    )
    with state.engine.connect() as db:
        sets = [row.target for row in db.execute(text(query), {"d": found.id})]
    return Trained(
        id=found.id, name=found.name, rows=found.rows, labelled=found.labelled, observations=found.observations, start=found.start,
        end=found.end, label=found.label, inputs=found.inputs, features=found.features, batches=found.batches, feature_sets=sets,
        content_sha256=found.content_sha256, revision=found.revision,
    )  # fmt: skip


def _questions(state: State, version: Version, evaluations: list[Evaluation]) -> list[Asked]:
    query = "SELECT count(*) AS n, coalesce(sum(CASE WHEN version = :v THEN 1 ELSE 0 END), 0) AS mine FROM questions WHERE project = :p AND holdout = :h"
    found, project = [], ids.split_name(version.name)[0]
    with state.engine.connect() as db:
        for holdout in dict.fromkeys(evaluation.holdout for evaluation in evaluations):
            row = db.execute(text(query), {"v": version.subject, "p": project, "h": holdout}).one()
            found.append(Asked(holdout=holdout, by_this_version=int(row.mine), by_project=int(row.n)))
    return found


def _moves(state: State, version: Version) -> list[Promoted]:
    """Return the moves to and from the version."""
    moves = promotion.moves(state, version.name, 1000)
    return [m for m in moves if version.version in (m.version.version, m.left.version if m.left else 0)]


def routes(state: State) -> list[Route]:
    def get_card(call: Call) -> Card | bytes:
        if not call.path["version"].isdecimal():
            raise BadInput("version", call.path["version"], "is not a number", "write its number, e.g. 3")
        found = card(state, f"{call.path['project']}/{call.path['name']}", int(call.path["version"]))
        wanted = call.query.get("format", "json")
        if wanted == "json":
            return found
        if wanted not in FORMATS:
            raise BadInput("query parameter format", wanted, "is not known", f"use one of json, {', '.join(FORMATS)}")
        call.media_type = FORMATS[wanted]
        return (cards.markdown(found) if wanted == "markdown" else cards.html(found)).encode()

    return [
        Route("GET", "/api/v1/cards/{project}/{name}/{version}", get_card, scope="models:read", answer=Card, doc="A version's card; with ?format=markdown or ?format=html to read."),
    ]  # fmt: skip
