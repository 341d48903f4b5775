"""The lines of the gate: what each asks, what it found, and the way out where it blocks.

A line reads records and the version's own files, never what a caller says; all are bound to the content digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.evaluation import baseline
from cellwork.evaluation.metrics import GREATER_IS_BETTER, better, primary
from cellwork.models import environment, versions
from cellwork.models.versions import Version
from cellwork.wire.evaluations import Evaluation, Latency, Metric
from cellwork.wire.gate import Check, KeptRules, Rules, Trusted
from cellwork_hub.platform import code_trust, scoring
from cellwork_hub.platform.judgements import compared_with, latest
from cellwork_hub.platform.state import State

PARITY = 1e-4
"""Most by which a row's score may change with its company, relatively; single precision alone gives some 1e-6."""


@dataclass(frozen=True)
class Asked:
    """A version, and what it is held against."""

    state: State
    client: Client
    version: Version
    kept: KeptRules

    @property
    def rules(self) -> Rules:
        return self.kept.rules

    @property
    def subject(self) -> str:
        return self.version.subject


def lines(asked: Asked) -> Iterator[Check]:
    """Yield the lines in the order in which one would mend them."""
    yield _origin(asked)
    content = _content(asked)
    yield content
    if asked.state.context.settings.trust == "team":
        yield _rules_of_another(asked)
    folder, why = _folder(asked)
    yield _card(asked, folder)
    if folder is not None:
        yield from _code(asked, folder)
    evaluation = _evaluation(asked)
    yield from _evaluated(asked, evaluation)
    if not content.passed:  # nobody overrides that, so what can't be tried can't pass
        return
    if folder is None:
        yield _line("sanity", _answering(asked), why, False, "register it with cellwork.models.registry.register")
    else:
        yield from _tried(asked, folder, evaluation.latency if evaluation else None)


def _folder(asked: Asked) -> tuple[Path | None, str]:
    """Return this machine's copy of the version's folder, or why it can't be read."""
    try:
        return scoring.copy(asked.state, asked.client, asked.version), ""
    except (Refused, NotFound, BadInput) as error:
        return None, str(error)


def _origin(asked: Asked) -> Check:
    wanted, tags = "made by somebody known, from a dataset of its project", asked.version.tags
    try:
        trained = scoring.trained_on(asked.state, asked.version)
    except Refused as error:
        return _line("origin", wanted, str(error), False, "register it with cellwork.models.registry.register")
    where = tags.get("notebook", "") or tags.get("user", "") or "a process without a notebook"
    return _line(
        "origin", wanted, f"registered from {where}, trained on {trained.id} ({trained.labelled:,} labelled rows)"
    )


def _content(asked: Asked) -> Check:
    wanted, way = "what MLflow keeps is what was registered", "register it again"
    try:
        scoring.unchanged(asked.client, asked.version)
    except (Refused, NotFound, BadInput) as error:
        return _line("content", wanted, str(error), False, way)
    return _line("content", wanted, f"is what was registered ({asked.version.digest[:12]})")


def _rules_of_another(asked: Asked) -> Check:
    """Nobody loosens the rules for a version of their own."""
    kept, author = asked.kept, asked.version.tags.get("user", "")
    wanted = "rules that its author did not set after registering it"
    said = f"revision {kept.revision} by {kept.by} of {kept.at:%Y-%m-%d %H:%M}" if kept.at else "the defaults"
    blocks = kept.at is not None and kept.by == author and kept.at > asked.version.at
    return _line("rules", wanted, said, not blocks, "have somebody else set them: cellwork model rules --apply")


def _card(asked: Asked, folder: Path | None) -> Check:
    """Its card says what the project wants said of a model."""
    tags = asked.version.tags
    said = {
        "owner": tags.get("owner") or asked.kept.owner or tags.get("user"),
        "contact": tags.get("contact") or asked.kept.contact,
        "origin": tags.get("notebook") or tags.get("run") or tags.get("user"),
        "dataset": tags.get("dataset"),
        "features": tags.get("features"),
        "description": asked.version.description,
        "environment": folder is not None and bool(environment.read(folder)),
        "split": tags.get("split"),
    }
    missing = [name for name in asked.rules.card if not said.get(name)]
    wanted = f"the card says {', '.join(asked.rules.card)}"
    if not missing:
        return _line("card", wanted, "says all of it")
    way = "complete [project] and [gate] of cellwork.toml, and register it again"
    return _line("card", wanted, f"does not say {', '.join(missing)}", False, way)


def _code(asked: Asked, folder: Path) -> Iterator[Check]:
    """What it brings of its author's code is trusted by somebody; a model without any has no such line."""
    words = code_trust.found(asked.state, asked.version.name.partition("/")[0], folder)
    missing = [Path(word.file).name for word in words if not isinstance(word, Trusted)]
    wanted, way = (
        "the code it brings is trusted by a named person",
        f"look at it, then: cellwork model trust {asked.subject}",
    )
    if missing:
        yield _line("code", wanted, f"nobody trusted {', '.join(missing)}", False, way)
    elif words:
        said = (f"{word.by} trusts {word.file}" for word in words if isinstance(word, Trusted))
        yield _line("code", wanted, ", ".join(said))


def _evaluation(asked: Asked) -> Evaluation | None:
    version = asked.version
    if not version.digest:
        return None
    return latest(asked.state, version.name, version.version, digest=version.digest, holdout=asked.rules.holdout)


def _evaluated(asked: Asked, evaluation: Evaluation | None) -> Iterator[Check]:
    """It was evaluated on the sealed holdout; what follows is held against that."""
    rules = asked.rules
    wanted = f"evaluated on sealed holdout {rules.holdout!r}" if rules.holdout else "evaluated on a sealed holdout"
    if evaluation is None:
        way = f"evaluate it: cellwork model evaluate {asked.subject} --holdout {rules.holdout or 'NAME'}"
        text = f"was not evaluated on {'that' if rules.holdout else 'a'} sealed holdout with this content"
        yield _line("evaluation", wanted, text, False, way)
        return
    metric = rules.metric or primary("classifier" if "roc_auc" in evaluation.metrics else "regressor")
    value = evaluation.metrics.get(metric)
    if value is None:
        has = ", ".join(evaluation.metrics)
        yield _line("evaluation", wanted, f"has no {metric} (has: {has})", False, "set another [gate] metric")
        return
    text = f"{metric} {_text(value)} on sealed holdout {evaluation.holdout!r}, question {evaluation.question_no}"
    yield _line("evaluation", wanted, text)
    if rules.questions:
        yield _questions(rules, evaluation)
    yield _beats(asked, evaluation, metric)
    yield _not_worse(asked, evaluation, metric)
    yield from _within(rules, evaluation)


def _questions(rules: Rules, evaluation: Evaluation) -> Check:
    wanted = f"at most {rules.questions} questions to the holdout"
    text = f"was question {evaluation.question_no} to {evaluation.holdout!r}"
    way = "seal newer data as a new holdout: what was asked often is no secret any more"
    return _line("questions", wanted, text, evaluation.question_no <= rules.questions, way)


def _beats(asked: Asked, evaluation: Evaluation, metric: str) -> Check:
    """The point estimate and the bad end of its interval are better than the baseline by what the rules ask."""
    rules, value, simple = asked.rules, evaluation.metrics[metric], evaluation.baseline.get(metric)
    by = evaluation.baseline_by
    name = "the baseline" if by is None else baseline.text(by)
    margin = f" by {rules.better_than_baseline_by:g}" if rules.better_than_baseline_by else ""
    wanted = f"{metric} clearly better than {name}{margin}"
    counts = rules.baseline if rules.baseline is not None else asked.version.tags.get("baseline", "")
    again = f"evaluate it again: cellwork model evaluate {asked.subject} --holdout {evaluation.holdout}"
    if by is not None and by != counts:
        text = f"was evaluated beside {baseline.text(by)}, the baseline that counts is {baseline.text(counts)}"
        return _line("baseline", wanted, text, False, again)
    if simple is None:
        return _line("baseline", wanted, f"was evaluated beside {name}, which has no {metric}", False, again)
    bar = _shifted(metric, simple.value, rules.better_than_baseline_by)
    passed = better(metric, value.value, bar) and better(metric, _worst(metric, value), bar)
    verdict = "beats" if passed else "does not clearly beat"
    text = f"{_text(value)} {verdict} the baseline's {simple.value:.4f}"
    return _line("baseline", wanted, text, passed, "a rule does as well: look for better features, or more data")


def _not_worse(asked: Asked, evaluation: Evaluation, metric: str) -> Check:
    """The good end of the paired difference reaches the champion; without one, that of its own interval."""
    champion = versions.aliases(asked.client, asked.version.name).get("champion", 0)
    allowed = asked.rules.worse_than_champion_by
    wanted = f"{metric} not worse than the champion's" + (f" by more than {allowed:g}" if allowed else "")
    if champion in (0, asked.version.version):
        return _line("champion", wanted, "is the champion" if champion else "there is no champion yet")
    again = f"evaluate it again: cellwork model evaluate {asked.subject} --holdout {evaluation.holdout}"
    value, theirs = evaluation.metrics[metric], _of_champion(asked, champion, evaluation).get(metric)
    if theirs is None:
        return _line("champion", wanted, f"was not compared with champion version {champion}", False, again)
    pair = evaluation.against_champion
    if pair is not None and pair.metric == metric and champion == compared_with(asked.state, evaluation.id):
        passed, how = (
            pair.high >= -allowed,
            f"by {pair.value:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}] on the same rows",
        )
    else:
        passed, how = not better(metric, _shifted(metric, theirs.value, -allowed), _best(metric, value)), "by intervals"
    text = f"{_text(value)} {'is not worse' if passed else 'is worse'} than champion version {champion}'s {theirs.value:.4f}, {how}"
    return _line("champion", wanted, text, passed, "keep the champion, or train better")


def _of_champion(asked: Asked, champion: int, evaluation: Evaluation) -> dict[str, Metric]:
    """Return the champion's metrics on the evaluation's holdout, where they are known."""
    if champion == compared_with(asked.state, evaluation.id):
        return evaluation.champion
    digest = versions.get(asked.client, asked.version.name, champion).digest
    known = latest(asked.state, asked.version.name, champion, digest=digest, holdout=evaluation.holdout)
    return known.metrics if known else {}


def _within(rules: Rules, evaluation: Evaluation) -> Iterator[Check]:
    for word, bounds in (("least", rules.least), ("most", rules.most)):
        for metric, bound in bounds.items():
            value = evaluation.metrics.get(metric)
            passed = value is not None and (value.value >= bound if word == "least" else value.value <= bound)
            text = f"is {_text(value)}" if value else f"is not known (has: {', '.join(evaluation.metrics)})"
            yield _line(
                f"{metric} at {word}", f"{metric} at {word} {bound:g}", text, passed, "train better, or change [gate]"
            )


def _tried(asked: Asked, folder: Path, measured: Latency | None) -> Iterator[Check]:
    """It loads in a clean process, answers its example and the project's requests, in time; and is not too large."""
    wanted = _answering(asked)
    try:
        sane = scoring.sanity(folder)
        problem = _wrong(folder, asked.rules) or _company(sane)
    except (BadInput, Refused) as error:
        yield _line("sanity", wanted, str(error), False, "score it in a notebook to see why")
        return
    yield _line("sanity", wanted, problem or sane.text, not problem, "look at the model's answers in a notebook")
    latency, size = measured or sane.latency, scoring.size(folder) / 1e6
    wanted = f"a row in at most {asked.rules.latency_ms:g} ms"
    text = f"takes {latency.one_ms:.3g} ms a row (p95 {latency.p95_ms:.3g} ms) in a clean process"
    yield _line(
        "latency",
        wanted,
        text,
        latency.one_ms <= asked.rules.latency_ms,
        "make it smaller, or evaluate it again on a quiet machine",
    )
    wanted = f"at most {asked.rules.size_mb:g} MB"
    yield _line("size", wanted, f"is {size:.3g} MB", size <= asked.rules.size_mb, "make it smaller")


def _answering(asked: Asked) -> str:
    requests = asked.rules.sanity
    return "loads and answers" + (f", {len(requests)} requests of the project within bounds" if requests else "")


def _wrong(folder: Path, rules: Rules) -> str:
    """Return what is wrong with the answers to the project's requests; empty if nothing is."""
    if not rules.sanity:
        return ""
    for request, score in zip(rules.sanity, scoring.answers(folder, [r.row for r in rules.sanity]), strict=True):
        if request.least is not None and score < request.least:
            return f"says {score:.4f} to {request.row}, under {request.least:g}"
        if request.most is not None and score > request.most:
            return f"says {score:.4f} to {request.row}, over {request.most:g}"
    return ""


def _company(sane: scoring.Sane) -> str:
    """Return what is wrong with a model whose answer to a row depends on the rows beside it; empty if nothing is."""
    return "" if sane.company <= PARITY else f"scores a row differently, by {sane.company:.2g}, when it is asked alone"


def _line(name: str, asked: str, found: str, passed: bool = True, way_out: str = "") -> Check:
    return Check(name=name, passed=passed, text=found, asked=asked, way_out="" if passed else way_out)


def _text(metric: Metric) -> str:
    return f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]"


def _shifted(metric: str, value: float, by: float) -> float:
    """Return `value` made better by `by`."""
    return value + by if metric in GREATER_IS_BETTER else value - by


def _worst(metric: str, value: Metric) -> float:
    return value.low if metric in GREATER_IS_BETTER else value.high


def _best(metric: str, value: Metric) -> float:
    return value.high if metric in GREATER_IS_BETTER else value.low
