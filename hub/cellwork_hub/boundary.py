"""The boundary of a project in MLflow, which knows none: in `team` trust people reach what belongs to their projects, and the rest is not there.

An experiment or a registered model belongs to the project before the first dot of its name, or of its whole name; runs, logged models, traces and artifacts belong to
their experiment. A request is let pass when everything that it names, wherever in path, query or body and in whichever of the
spellings that MLflow takes, is the caller's; one that names nothing is refused, but for lists, of which the caller's part is answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote

import anyio

from cellwork import errors, scopes
from cellwork.wire.records import Principal
from cellwork_hub.bodies import decode
from cellwork_hub.gate import Asked
from cellwork_hub.route import Malformed

MOST_BYTES = 4 * 1024 * 1024
OPEN = re.compile(r"/|/version|/static-files/.+|/(?:ajax-)?api/3\.0/mlflow/server-info")
"""What belongs to nobody."""
LISTS = {"experiments": "experiments", "registered-models": "registered_models", "model-versions": "model_versions"}
LIST = re.compile(r"/(?:ajax-)?api/2\.0/mlflow/(experiments|registered-models|model-versions)/search")
REGISTRY = re.compile(
    r"/(?:ajax-)?api/2\.0/mlflow/(?:registered-models|model-versions)/.+|/model-versions/get-artifact"
)
EXPERIMENTS = re.compile(r"/(?:ajax-)?api/2\.0/mlflow/experiments/.+")
LOGGED = re.compile(r"/(?:ajax-)?api/2\.0/mlflow/logged-models/(?!search$)([\w-]+)(?:/.*)?")
FILES = re.compile(r"/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts(?:/(.+))?")
FIELDS = {
    "experiment_id": "experiment", "experiment_ids": "experiment", "experiment_name": "name",
    "run_id": "run", "run_ids": "run", "run_uuid": "run", "source_run_id": "run", "model_id": "logged", "model_ids": "logged",
    "trace_id": "trace", "trace_ids": "trace", "request_id": "trace", "request_ids": "trace",
}  # fmt: skip
QUERIES = {"mlflowGetExperiment", "mlflowGetRun", "mlflowListArtifacts", "mlflowGetMetricHistoryBulkInterval", "mlflowSearchRuns", "mlflowSearchDatasets"}  # fmt: skip
"""The fields of the graph that say what they are asked of."""

Named = set[tuple[str, str]]
"""Kind (experiment, run, logged, trace: an id; name: a full name) and value of everything a request names."""


async def check(asked: Asked, principal: Principal) -> None:
    """Raise NotFound for what is another project's, and Malformed for what names nothing; narrow a list to the caller's part.

    A list of a thousand may then come in pages of fewer; its token for the next page stays.
    """
    if OPEN.fullmatch(asked.path):
        return
    body = {} if FILES.fullmatch(asked.path) and asked.method == "PUT" else await _body(asked)
    found = named(asked.path, asked.query, body)
    mine = scopes.projects(principal.groups)
    if match := LIST.fullmatch(asked.path):
        asked.answer = _narrower(LISTS[match[1]], mine)
    elif not found:
        raise Malformed("request", asked.path, "names no experiment, run or model", "name one of your project")
    owners = await anyio.to_thread.run_sync(projects, found)
    for (kind, value), owner in sorted(owners.items()):
        if owner not in mine:
            word = "model or experiment" if kind == "name" else {"logged": "logged model"}.get(kind, kind)
            raise errors.NotFound(
                word, value, "does not exist, or belongs to a project that is not yours",
                "name it `project.name` by a project of yours, e.g. mlflow.set_experiment('project.name')",
            )  # fmt: skip


async def _body(asked: Asked) -> dict[str, Any]:
    return decode(await asked.body(MOST_BYTES))


def named(path: str, query: bytes, body: dict[str, Any]) -> Named:
    """Return everything that a request names."""
    asked = parse_qsl(query.decode("latin-1"))
    found = {pair for key, value in asked for pair in _field(key, value)} | set(_fields(body))
    if path == "/graphql":
        return found | _graph(body)
    if match := LOGGED.fullmatch(path):
        found.add(("logged", match[1]))
    if match := FILES.fullmatch(path):
        inside = [match[1] or "", *(value for key, value in asked if key == "path")]
        found |= {pair for part in inside if part for pair in _file(part)}
    if REGISTRY.fullmatch(path) or EXPERIMENTS.fullmatch(path):
        said = [*asked, *body.items()]
        found |= {("name", str(value)) for key, value in said if _snake(key) in ("name", "new_name") and value}
    for key, value in body.items():
        if _snake(key) in ("source", "artifact_location") and value:
            found |= set(_source(str(value)))
    return found


def _snake(key: str) -> str:
    """Return a field's name as its definition has it; MLflow's messages also take it in camel case."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", key).lower()


def _field(key: str, value: Any) -> Iterator[tuple[str, str]]:
    kind = FIELDS.get(_snake(key))
    for one in value if isinstance(value, list) else [value]:
        if kind and one not in ("", None) and not isinstance(one, dict):
            yield kind, str(one)


def _fields(value: Any) -> Iterator[tuple[str, str]]:
    """Yield what a body names, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _field(key, inner)
            yield from _fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner)


def _file(path: str) -> Iterator[tuple[str, str]]:
    """Yield what a path below the artifact root belongs to: its experiment, and the run or logged model in it."""
    parts = [part for part in unquote(path).split("/") if part]
    if not parts or "\\" in path or ".." in parts or "." in parts:
        raise Malformed("artifact path", path, "is not canonical", "write it without dots and doubled slashes")
    yield "experiment", parts[0]


def _source(location: str) -> Iterator[tuple[str, str]]:
    """Yield what an artifact location belongs to; `cellwork_hub.tracking` has refused those of other kinds."""
    scheme, _, rest = location.partition(":")
    parts = [part for part in rest.split("/") if part]
    if scheme == "runs" and parts:
        yield "run", parts[0]
    elif scheme == "mlflow-artifacts" and parts:
        yield from _file("/".join(parts))
    elif scheme == "models" and parts:
        yield ("logged", parts[0]) if len(parts) == 1 and parts[0].startswith("m-") else ("name", parts[0])


def _graph(body: dict[str, Any]) -> Named:
    """Return what a query of the graph names, in its text; what stands in its variables is found with the body's fields."""
    from graphql import GraphQLError, parse, visit
    from graphql.language import (
        FieldNode,
        ObjectFieldNode,
        OperationDefinitionNode,
        VariableDefinitionNode,
        VariableNode,
        Visitor,
    )

    given = body.get("variables")
    variables: dict[str, Any] = given if isinstance(given, dict) else {}

    class Reader(Visitor):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.found: Named = set()

        def enter_object_field(self, node: ObjectFieldNode, *_: Any) -> None:
            for one in getattr(node.value, "values", [node.value]):
                value = variables.get(one.name.value) if isinstance(one, VariableNode) else getattr(one, "value", "")
                self.found |= set(_field(node.name.value, value))

        def enter_variable_definition(self, node: VariableDefinitionNode, *_: Any) -> None:
            if node.default_value is not None:
                raise Malformed("query", node.variable.name.value, "has a default", "give every variable its value")

    try:
        tree = parse(str(body.get("query", "")))
    except GraphQLError:
        raise Malformed("query", "", "is not GraphQL", "use MLflow's own page") from None
    for definition in tree.definitions:
        chosen = definition.selection_set.selections if isinstance(definition, OperationDefinitionNode) else ()
        for one in chosen:
            if not isinstance(one, FieldNode) or one.name.value not in QUERIES:
                name = one.name.value if isinstance(one, FieldNode) else "a fragment"
                raise errors.Refused("field of the graph", name, "is not opened here", f"ask for {', '.join(sorted(QUERIES))}")  # fmt: skip
    reader = Reader()
    visit(tree, reader)
    return reader.found


def projects(found: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the project of everything that is there; what is not there is of none."""
    from mlflow.server.handlers import _get_tracking_store
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun, SqlTraceInfo

    keys = {"run": (SqlRun, SqlRun.run_uuid), "logged": (SqlLoggedModel, SqlLoggedModel.model_id), "trace": (SqlTraceInfo, SqlTraceInfo.request_id)}  # fmt: skip
    owners = {}
    with _get_tracking_store().ManagedSessionMaker() as session:
        for kind, value in found:
            rows = session.query(SqlExperiment.name)
            if kind == "name":
                owners[kind, value] = _project(value)
                continue
            if kind == "experiment":
                rows = rows.filter(SqlExperiment.experiment_id == int(value)) if value.isdecimal() else None
            else:
                table, key = keys[kind]
                rows = rows.join(table, table.experiment_id == SqlExperiment.experiment_id).filter(key == value)
            name = rows.scalar() if rows is not None else None
            owners[kind, value] = "" if name is None else _project(name)
    return owners


def _project(name: str) -> str:
    return name.partition(".")[0]


def _narrower(key: str, mine: Iterable[str]) -> Callable[[bytes], bytes]:
    """Return what leaves of a list's answer the entries of the projects `mine`."""

    def narrow(answer: bytes) -> bytes:
        values = json.loads(answer)
        if isinstance(values.get(key), list):
            values[key] = [entry for entry in values[key] if _project(entry.get("name", "")) in mine]
        return json.dumps(values).encode()

    return narrow
