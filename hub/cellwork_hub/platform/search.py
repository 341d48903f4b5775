"""Search over all projects' data by words, who uses what, and the near-duplicates of a view.

Everything is read from definitions and records as they are now; there is no index to grow stale. Nothing here shows values of data.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import polars as pl
from deltalake import DeltaTable
from sqlalchemy import text

from cellwork import ids
from cellwork.data import search
from cellwork.features import references, twins
from cellwork.wire.datasets import Dataset
from cellwork.wire.features import Definitions, View
from cellwork.wire.search import Found, Twin
from cellwork_hub.platform import feature_definitions, raw, statistics
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION: tuple[str, ...] = ()
KEYS_IN_COMMON = 0.3
"""Share of entities (Jaccard) that two views must have in common to be compared by their values."""


class Uses:
    """Who uses the features of the platform: datasets, and through them models and the runs that trained them."""

    def __init__(self, state: State) -> None:
        self.datasets: defaultdict[tuple[str, str], list[Dataset]] = defaultdict(list)
        """(project, column ``view__feature``, or name of the observations) -> datasets."""
        with state.engine.connect() as db:
            for (record,) in db.execute(text("SELECT record FROM datasets ORDER BY seq")):
                dataset = msgspec.json.decode(record, type=Dataset)
                for name in {*dataset.features, dataset.observations, f"label:{dataset.label_name}"}:
                    self.datasets[dataset.project, name].append(dataset)
            self.trained = _edges(db.execute(text("SELECT target, source FROM edges WHERE relation = 'trained_on'")))
            self.runs = _edges(db.execute(text("SELECT target, source FROM edges WHERE relation = 'registered_as'")))
            self.made = _edges(db.execute(text("SELECT source, target FROM edges WHERE relation = 'made_by'")))

    def of(self, project: str, names: Iterable[str]) -> list[str]:
        """Return what uses one of the columns or observations `names` of a project."""
        found = {d.id: d for name in names for d in self.datasets.get((project, name), ())}
        models = sorted({model for dataset in found for model in self.trained.get(dataset, ())})
        runs = sorted({m for model in models for run in self.runs.get(model, ()) for m in self.made.get(run, ())})
        said = [f"dataset:{name}" for name in sorted({f"{d.project}/{d.name}" for d in found.values()})]
        return [
            *said,
            *(f"model:{model}" for model in models),
            *(f"run:{run}" for run in runs if run.startswith("run_")),
        ]


def _edges(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for key, value in rows:
        found[key].append(value)
    return found


def visible(state: State, call: Call) -> list[str]:
    """Return the projects with data that the caller may see."""
    call.asked = True  # also where there is no project to ask about
    with state.engine.connect() as db:
        rows = db.execute(text("SELECT project FROM definitions UNION SELECT project FROM raw_datasets ORDER BY 1"))
        return [row[0] for row in rows if call.may_enter(row[0])]


def entries(state: State, project: str, uses: Uses) -> Iterator[Found]:
    """Yield all that can be found in a project."""
    known = statistics.defined(state, project)
    for declared in raw.all_declared(state, project):
        columns = ", ".join(column.name for column in raw.pinned(state, project, declared.name))
        yield Found(
            kind="raw", project=project, name=declared.name, owner=declared.owner, tags=declared.tags,
            description=f"{declared.description} ({columns})", used_by=statistics.readers(state, project, declared.name),
        )  # fmt: skip
    for view in known.views:
        yield from _view(known, view, uses)
    for service in known.services:
        yield Found(
            kind="service", project=project, name=service.name, owner=service.owner,
            description=f"{service.description} ({', '.join(service.features)})",
        )  # fmt: skip
    for about in known.observations:
        if about.label:
            yield Found(
                kind="label", project=project, name=f"{about.name}:{about.label}", entities=sorted(about.keys),
                description=about.description, used_by=uses.of(project, [about.name]),
            )  # fmt: skip
    for label in known.labels:
        yield Found(
            kind="label", project=project, name=label.name, owner=label.owner, tags=label.tags,
            description=label.description, used_by=uses.of(project, [f"label:{label.name}"]),
        )  # fmt: skip
    with state.engine.connect() as db:
        names = db.execute(text("SELECT DISTINCT name FROM datasets WHERE project = :p ORDER BY name"), {"p": project})
        yield from (Found(kind="dataset", project=project, name=row[0]) for row in names.all())


def _view(known: Definitions, view: View, uses: Uses) -> Iterator[Found]:
    keys = references.join_keys(known, view)
    about: dict[str, Any] = {
        "project": known.project,
        "owner": view.owner,
        "tags": view.tags,
        "entities": sorted({*view.entities, *keys}),
    }
    yield Found(kind="view", name=view.name, description=view.description, used_by=users(known, view, uses), **about)
    for field in view.fields:
        name = f"{view.name}:{field.name}"
        used = users(known, view, uses, field.name)
        yield Found(kind="feature", name=name, description=field.description, used_by=used, **about)


def users(known: Definitions, view: View, uses: Uses, field: str = "") -> list[str]:
    """Return the services, datasets, models and runs that use a view, or one of its features."""
    names = {view.name, *(f"{view.name}:{f.name}" for f in view.fields if field in ("", f.name))}
    services = [f"service:{s.name}" for s in known.services if names & set(s.features)]
    columns = [f"{view.name}__{f.name}" for f in view.fields if field in ("", f.name)]
    return [*services, *uses.of(known.project, columns)]


# Near-duplicates


def twins_of(state: State, project: str, name: str, others: Sequence[str]) -> list[Twin]:
    """Return features of other views, in the projects `others`, that nearly repeat one of the view `name`; the strongest first.

    Values are compared only with views that are filled and have entities in common; definitions with all.
    """
    known = feature_definitions.definitions(state, project)[0]
    view, uses = references.view_of(known, name), Uses(state)
    found: dict[tuple[str, str], Twin] = {}
    ours = _Filled(state, known, view)
    for space in others:
        theirs = statistics.defined(state, space)
        for other in theirs.views:
            if (space, other.name) == (project, name):
                continue
            pairs = [(f, g, "defined alike", 1.0) for f, g in twins.defined_alike(known, view, theirs, other)]
            for field, twin, reason, strength in [*pairs, *ours.compared(_Filled(state, theirs, other))]:
                key = (f"{name}:{field}", f"{space}/{other.name}:{twin}")
                used = users(theirs, other, uses, twin)
                made = Twin(
                    feature=key[0], twin=key[1], reason=reason, strength=strength, owner=other.owner, used_by=used
                )
                found.setdefault(key, made)
    return sorted(found.values(), key=lambda twin: (-twin.strength, twin.feature, twin.twin))


class _Filled:
    """The readable rows of a view, looked at only where they are needed."""

    def __init__(self, state: State, known: Definitions, view: View) -> None:
        self.state, self.view, self.keys = state, view, references.join_keys(known, view)
        self.project, self.fields = known.project, [field.name for field in view.fields]
        revision = feature_definitions.view_revision(state, known.project, view.name)
        self.path = state.home.feature_table(known.project, view.name) / f"revision-{revision}"
        self._sample: pl.DataFrame | None = None

    @property
    def there(self) -> bool:
        return DeltaTable.is_deltatable(str(self.path))

    def compared(self, other: _Filled) -> list[tuple[str, str, str, float]]:
        """Return the pairs of fields that are nearly the same by their values."""
        if len(self.keys) != len(other.keys) or not (self.there and other.there) or not self._meets(other):
            return []
        return twins.compare(self.sample, other.sample, self.fields, other.fields)

    def _meets(self, other: _Filled) -> bool:
        one = statistics.of_view(self.state, self.project, self.view.name)[0]
        two = statistics.of_view(self.state, other.project, other.view.name)[0]
        return all(
            one[mine].distinct.overlap(two[their].distinct) >= KEYS_IN_COMMON
            for mine, their in zip(self.keys, other.keys, strict=True)
        )

    @property
    def sample(self) -> pl.DataFrame:
        if self._sample is None:
            self._sample = twins.sample(pl.scan_delta(str(self.path)), self.keys, self.fields)
        return self._sample


def routes(state: State) -> list[Route]:
    def get_search(call: Call) -> list[Found]:
        chosen = [call.query["project"]] if call.query.get("project") else visible(state, call)
        kind = call.query.get("kind", "")
        uses = Uses(state)
        there = (entry for project in chosen for entry in entries(state, project, uses) if kind in ("", entry.kind))
        if not call.query.get("q") and call.query.get("project"):
            return list(itertools.islice(there, call.limit(50, 500)))
        return search.best(there, call.required("q"), limit=call.limit(50, 500))

    def get_twins(call: Call) -> list[Twin]:
        return twins_of(state, ids.name(call.path["project"], "project"), call.path["view"], visible(state, call))

    return [
        Route("GET", "/api/v1/search", get_search, scope="features:read", answer=list[Found], doc="Data, features and labels that hold every word of ?q=, with who uses them; without it all of ?project=."),
        Route("GET", "/api/v1/twins/{project}/{view}", get_twins, scope="features:read", answer=list[Twin], doc="Features of other views that nearly repeat those of a view."),
    ]  # fmt: skip
