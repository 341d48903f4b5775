"""The gate in front of promotion and traffic, and promotion itself. The platform's token alone moves `champion` and `previous`.

A gate is a list of sentences, each with its verdict; it passes when all do. It is bound to the content digest: what was evaluated is what
is promoted, and what MLflow keeps is what was registered.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
from sqlalchemy import Connection, text

from cellwork import clock, ids
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.evaluation.metrics import Kind, better, primary
from cellwork.models import versions
from cellwork.models.versions import Version
from cellwork.wire.evaluations import Check, Evaluation, Gate, Metric, Promoted, Promotion
from cellwork_hub import records
from cellwork_hub.platform import scoring
from cellwork_hub.platform.judgements import compared_with, latest
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call

_promoting = threading.Lock()


def gate(state: State, name: str, number: int) -> Gate:
    """Return what the gate says about a version; raises NotFound if there is no such version."""
    with state.context.client("cellwork") as client:
        return _gate(state, client, versions.get(client, name, number))


def _gate(state: State, client: Client, version: Version) -> Gate:
    checks = [_registered(state, version), _unchanged(client, version)]
    evaluation = latest(state, version.name, version.version, digest=version.digest) if version.digest else None
    checks += _evaluated(state, client, version, evaluation)
    if all(check.passed for check in checks[:2]):
        checks.append(_loads(state, client, version))
    return Gate(version=version.ref, passed=all(check.passed for check in checks), checks=checks)


def _registered(state: State, version: Version) -> Check:
    """Its origin and its dataset are known."""
    try:
        trained = scoring.trained_on(state, version)
    except Refused as error:
        return Check(name="origin", passed=False, text=str(error))
    where = version.tags.get("notebook", "") or version.tags.get("user", "") or "a process without a notebook"
    return Check(
        name="origin",
        passed=True,
        text=f"registered from {where}, trained on {trained.id} ({trained.labelled:,} labelled rows)",
    )


def _unchanged(client: Client, version: Version) -> Check:
    try:
        scoring.unchanged(client, version)
    except (Refused, NotFound, BadInput) as error:
        return Check(name="content", passed=False, text=str(error))
    return Check(name="content", passed=True, text=f"is what was registered ({version.digest[:12]})")


def _evaluated(state: State, client: Client, version: Version, evaluation: Evaluation | None) -> Iterator[Check]:
    """It was evaluated on a sealed holdout, beats its baseline there and is not worse than the champion."""
    if evaluation is None:
        way = f"evaluate it: cellwork model evaluate {version.subject} --holdout NAME"
        yield Check(
            name="evaluation", passed=False, text=f"was not evaluated on a sealed holdout with this content; {way}"
        )
        return
    metric = primary(_kind(evaluation))
    value = evaluation.metrics[metric]
    text = f"{metric} {_text(value)} on sealed holdout {evaluation.holdout!r}, question {evaluation.question_no}"
    yield Check(name="evaluation", passed=True, text=text)
    yield _beats(metric, value, evaluation.baseline[metric])
    yield _not_worse(state, client, version, evaluation)


def _kind(evaluation: Evaluation) -> Kind:
    return "classifier" if "roc_auc" in evaluation.metrics else "regressor"


def _text(metric: Metric) -> str:
    return f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]"


def _worst(metric: str, value: Metric) -> float:
    return value.low if better(metric, value.high, value.low) else value.high


def _best(metric: str, value: Metric) -> float:
    return value.high if better(metric, value.high, value.low) else value.low


def _beats(metric: str, value: Metric, simple: Metric) -> Check:
    """The point estimate and the bad end of its interval are better than the baseline."""
    passed = better(metric, value.value, simple.value) and better(metric, _worst(metric, value), simple.value)
    verdict = "beats" if passed else "does not clearly beat"
    return Check(name="baseline", passed=passed, text=f"{_text(value)} {verdict} the baseline's {simple.value:.4f}")


def _not_worse(state: State, client: Client, version: Version, evaluation: Evaluation) -> Check:
    """The good end of its interval reaches the champion's value on the same holdout."""
    champion = versions.aliases(client, version.name).get("champion", 0)
    if champion in (0, version.version):
        return Check(name="champion", passed=True, text="is the champion" if champion else "there is no champion yet")
    metric = primary(_kind(evaluation))
    value, theirs = (
        evaluation.metrics[metric],
        _of_champion(state, client, version.name, champion, evaluation).get(metric),
    )
    if theirs is None:
        return Check(
            name="champion", passed=False, text=f"was not compared with champion version {champion}; evaluate it again"
        )
    passed = not better(metric, theirs.value, _best(metric, value))
    verdict = "is not worse than" if passed else "is worse than"
    return Check(
        name="champion",
        passed=passed,
        text=f"{_text(value)} {verdict} champion version {champion}'s {theirs.value:.4f}",
    )


def _of_champion(state: State, client: Client, name: str, champion: int, evaluation: Evaluation) -> dict[str, Metric]:
    """Return the champion's metrics on the evaluation's holdout, where they are known."""
    if champion == compared_with(state, evaluation.id):
        return evaluation.champion
    known = latest(
        state, name, champion, digest=versions.get(client, name, champion).digest, holdout=evaluation.holdout
    )
    return known.metrics if known else {}


def _loads(state: State, client: Client, version: Version) -> Check:
    """It loads in a clean process and scores its example rows."""
    try:
        return Check(name="sanity", passed=True, text=scoring.sanity(scoring.copy(state, client, version)))
    except (BadInput, Refused) as error:
        return Check(name="sanity", passed=False, text=str(error))


def promote(state: State, call: Call, request: Promotion) -> Promoted:
    """Move `champion` to a version that passes the gate; the old champion becomes `previous`. Saying it twice changes nothing.

    Raises
    ------
    NotFound
        There is no such version.
    Refused
        The gate does not pass; each failed check is named, and the refusal is in the audit.
    """
    with _promoting, state.context.client("cellwork") as client:
        version = versions.get(client, request.name, request.version)
        found = _gate(state, client, version)
        if not found.passed:
            raise _refused(state, call, version, found, request.reason)
        champion = versions.aliases(client, version.name).get("champion", 0)
        last = _last(state, version.name)
        if champion == version.version and last is not None and last.version.version == champion:
            return last
        previous = versions.get(client, version.name, champion).ref if champion not in (0, version.version) else None
        if previous is not None:
            versions.set_alias(client, version.name, "previous", previous.version)
        versions.set_alias(client, version.name, "champion", version.version)
        promoted = Promoted(version=version.ref, previous=previous, gate=found, at=clock.now())
    with state.engine.begin() as db:
        _keep(db, call, promoted, request.reason)
    return promoted


def _refused(state: State, call: Call, version: Version, found: Gate, reason: str) -> Refused:
    failed = "; ".join(f"{check.name}: {check.text}" for check in found.checks if not check.passed)
    with state.engine.begin() as db:
        records.audit(db, call, "model.promote.refused", version.subject, after=failed, reason=reason)
    return Refused(
        "version",
        version.subject,
        f"does not pass the gate ({failed})",
        f"look at: cellwork model gate {version.subject}",
    )


def _last(state: State, name: str) -> Promoted | None:
    """Return the newest promotion of the model."""
    with state.engine.connect() as db:
        query = text("SELECT record FROM promotions WHERE name = :n ORDER BY seq DESC LIMIT 1")
        record = db.execute(query, {"n": name}).scalar()
    return msgspec.json.decode(record, type=Promoted) if record else None


def _keep(db: Connection, call: Call, promoted: Promoted, reason: str) -> None:
    ref, previous = promoted.version, promoted.previous
    subject = versions.subject(ref.name, ref.version)
    before = versions.subject(previous.name, previous.version) if previous else ""
    insert = "INSERT INTO promotions (name, version, record) VALUES (:n, :v, :r)"
    db.execute(text(insert), {"n": ref.name, "v": ref.version, "r": msgspec.json.encode(promoted).decode()})
    if previous:
        records.edge(db, subject, "supersedes", before)
    project = ids.split_name(ref.name)[0]
    records.event(
        db, "model.promoted", project, subject, model=ref.name, version=ref.version, digest=ref.digest, previous=before
    )
    records.audit(
        db,
        call,
        "model.promote",
        subject,
        before=before,
        after={"champion": subject, "digest": ref.digest},
        reason=reason,
    )
