"""A model card as Markdown and HTML: one list of sections, two ways to write it. Every text on it may be an author's, so all of it is escaped."""

from __future__ import annotations

import html as markup
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cellwork.evaluation import baseline
from cellwork.models import versions
from cellwork.wire.cards import Card
from cellwork.wire.evaluations import Evaluation, Metric
from cellwork.wire.gate import Gate

Row = tuple[str, ...]
SPECIAL = re.compile(r"([\\`*_{}()\[\]#|~])")


@dataclass(frozen=True)
class Section:
    title: str
    rows: Sequence[Row]
    head: Row = ()
    note: str = ""
    lines: Sequence[str] = field(default=())
    """Verbatim, e.g. the environment's pins."""


def markdown(card: Card) -> str:
    """Return the card as Markdown with tables."""
    parts = [f"# {_escaped(_title(card))}"]
    for section in sections(card):
        parts.append(f"## {_escaped(section.title)}")
        if section.note:
            parts.append(_escaped(section.note))
        if section.rows:
            head = section.head or ("", "")
            lines = [head, tuple("---" for _ in head), *(tuple(_escaped(cell) for cell in row) for row in section.rows)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if section.lines:
            parts.append("\n".join(f"    {line}" for line in section.lines))
    return "\n\n".join(parts) + "\n"


STYLE = "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;padding:.2em .8em .2em 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}"


def html(card: Card, *, page: bool = True) -> str:
    """Return the card as HTML: a page of its own, or (without `page`) what goes into one."""
    title = markup.escape(_title(card))
    parts = [f"<h1>{title}</h1>"]
    for section in sections(card):
        parts.append(f"<h2>{markup.escape(section.title)}</h2>")
        if section.note:
            parts.append(f"<p>{markup.escape(section.note)}</p>")
        if section.rows:
            head = _cells("th", section.head)
            parts.append(f"<table>{head}{''.join(_cells('td', row) for row in section.rows)}</table>")
        if section.lines:
            parts.append(
                f"<details><summary>{len(section.lines)} lines</summary><pre>{markup.escape(chr(10).join(section.lines))}</pre></details>"
            )
    body = "".join(parts)
    if not page:
        return f"<article>{body}</article>"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><article>{body}</article></body></html>'


def sections(card: Card) -> Iterator[Section]:
    """Yield the card's sections; one without anything to say is left out, but for what must be missed: evaluations."""
    yield Section("About", [*_named(
        ("owner", card.owner), ("contact", card.contact), ("registered", _time(card.registered)), ("aliases", ", ".join(card.aliases)),
        ("kind", card.kind), ("digest", card.version.digest), ("size", f"{card.size_bytes:,} bytes" if card.size_bytes else ""),
    )], note=card.description)  # fmt: skip
    yield Section("Origin", [*_named(*card.origin.items(), ("training run", card.training_run))])
    if card.dataset:
        yield _dataset(card)
    if card.parameters or card.validation:
        numbers = [(name, f"{value:.6g}") for name, value in card.validation.items()]
        yield Section(
            "Training",
            [*card.parameters.items(), *numbers],
            ("what", "value"),
            "Parameters, and metrics on data that its author saw.",
        )
    yield from _evaluations(card)
    yield from _decisions(card)
    if card.code:
        rows = [
            (word.file, word.sha256, word.by or "nobody", _time(word.at) if word.by else "", word.reason)
            for word in card.code
        ]
        yield Section("Code of its own", rows, ("wheel", "sha256", "trusted by", "at", "why"))
    yield Section("Environment", [("python", card.python)] if card.python else [], ("", ""), lines=card.environment)
    if card.gaps:
        yield Section("Not known", [("", gap) for gap in card.gaps])


def _dataset(card: Card) -> Section:
    data = card.dataset
    assert data is not None
    return Section("Data", [*_named(
        ("dataset", f"{data.name} ({data.id})"), ("rows", f"{data.rows:,}, {data.labelled:,} with a label"), ("observations", data.observations),
        ("from", _time(data.start)), ("to", _time(data.end)), ("label", data.label), ("inputs", ", ".join(data.inputs)),
        ("features", ", ".join(data.features)), ("model columns", ", ".join(card.columns)), ("split", card.split),
        ("transformers", ", ".join(card.transformers)), ("definitions", f"revision {data.revision}"), ("feature sets", ", ".join(data.feature_sets)),
        ("batches", ", ".join(data.batches)), ("content", data.content_sha256),
    )])  # fmt: skip


def _evaluations(card: Card) -> Iterator[Section]:
    if not card.evaluations:
        yield Section("Evaluation", [], note="Was not evaluated on a sealed holdout.")
    seen: set[str] = set()
    for evaluation in card.evaluations:
        if evaluation.holdout not in seen and not evaluation.also:
            seen.add(evaluation.holdout)
            yield _evaluation(evaluation, card)


def _evaluation(evaluation: Evaluation, card: Card) -> Section:
    sides = {"model": evaluation.metrics, "baseline": evaluation.baseline, "champion": evaluation.champion}
    shown = {name: metrics for name, metrics in sides.items() if metrics}
    rows = [(metric, *(text(side.get(metric)) for side in shown.values())) for metric in evaluation.metrics]
    asked = next((each for each in card.questions if each.holdout == evaluation.holdout), None)
    count = (
        f"; asked {asked.by_this_version} times for this version, {asked.by_project} times by the project"
        if asked
        else ""
    )
    by = "" if evaluation.baseline_by is None else f"; baseline: {baseline.text(evaluation.baseline_by)}"
    pair = evaluation.against_champion
    ahead = (
        f"; {pair.metric} {pair.value:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}] against the champion on the same rows"
        if pair
        else ""
    )
    fast = f"; {evaluation.latency.one_ms:.3g} ms a row" if evaluation.latency else ""
    note = f"{evaluation.rows:,} rows, {_time(evaluation.at)} by {evaluation.by}, {evaluation.id}, question {evaluation.question_no}{count}{by}{ahead}{fast}. 95 % intervals."
    return Section(f"Evaluation on sealed holdout {evaluation.holdout!r}", rows, ("metric", *shown), note)


def _decisions(card: Card) -> Iterator[Section]:
    if card.moves:
        rows = [
            (
                _time(move.at),
                move.kind.replace("_", " "),
                versions.subject(move.version.name, move.version.version),
                move.by,
                move.reason,
            )
            for move in card.moves
        ]
        yield Section("Champion", rows, ("at", "what", "champion then", "by", "why"))
    promoted = next((move for move in card.moves if move.gate and move.version.version == card.version.version), None)
    if promoted and promoted.gate:
        yield Section(
            "Gate at its promotion",
            _gate(promoted.gate),
            ("verdict", "line", "asked", "found"),
            f"By revision {promoted.gate.rules} of the project's rules.",
        )
    if card.overrides:
        rows = [(_time(word.at), word.by, word.check, word.found, word.reason) for word in card.overrides]
        yield Section("Overrides", rows, ("at", "by", "line", "what it found", "why it may pass"))


def _gate(gate: Gate) -> list[Row]:
    return [
        ("let pass" if check.override else "passed" if check.passed else "refused", check.name, check.asked, check.text)
        for check in gate.checks
    ]


def text(metric: Metric | None) -> str:
    return f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]" if metric else "-"


def _title(card: Card) -> str:
    return f"{card.version.name} version {card.version.version}"


def _named(*pairs: tuple[str, str]) -> Iterator[Row]:
    return (pair for pair in pairs if pair[1])


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _escaped(said: str) -> str:
    """Return `said` as Markdown that shows it and does nothing else, on one line."""
    return SPECIAL.sub(r"\\\1", markup.escape(" ".join(said.split()), quote=False))


def _cells(tag: str, row: Row) -> str:
    return f"<tr>{''.join(f'<{tag}>{markup.escape(cell)}</{tag}>' for cell in row)}</tr>" if row else ""
