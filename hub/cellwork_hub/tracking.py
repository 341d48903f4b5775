"""MLflow's whole app behind the gate: an allow-list of method and path, the registry's reserved things for the platform alone.

What a body must not say is read as MLflow reads it (`bodies`); the tags that the gate goes by have rules of their own (`tags`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from cellwork import errors
from cellwork.client import Client
from cellwork.home import Home
from cellwork.wire.records import Principal
from cellwork_hub import boundary
from cellwork_hub.bodies import field
from cellwork_hub.context import Context
from cellwork_hub.edge import serve
from cellwork_hub.gate import Asked, Gate, Rules
from cellwork_hub.guard import require
from cellwork_hub.login import Login
from cellwork_hub.tags import Door, check_kept, check_made

PLATFORM = "cellwork"
"""The one service that may touch what is reserved."""
RESERVED_ALIASES = frozenset({"champion", "previous", "candidate"})
LOCATIONS = ("mlflow-artifacts:/", "models:/", "runs:/")
"""Where artifacts may lie; MLflow itself would also open files of this machine."""
CODES = {
    400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST",
    413: "BAD_REQUEST", 422: "INVALID_PARAMETER_VALUE", 503: "TEMPORARILY_UNAVAILABLE",
}  # fmt: skip
API = r"/(?:ajax-)?api/2\.0/mlflow"
API3 = r"/(?:ajax-)?api/3\.0/mlflow"
ARTIFACTS = r"/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts"

Guard = Callable[[Asked, "re.Match[str]", Door], Awaitable[None]]


@dataclass(frozen=True)
class Rule:
    """`scope` opens the paths of `pattern`; `guard` looks closer, at everybody but the platform; without a scope they are the platform's."""

    methods: str
    pattern: re.Pattern[str]
    scope: str = ""
    guard: Guard | None = None


def _rule(methods: str, pattern: str, scope: str = "", guard: Guard | None = None) -> Rule:
    return Rule(methods, re.compile(pattern), scope, guard)


async def check_alias(asked: Asked, match: re.Match[str], door: Door) -> None:
    from mlflow.protos.model_registry_pb2 import DeleteRegisteredModelAlias, SetRegisteredModelAlias

    message = SetRegisteredModelAlias() if asked.method == "POST" else DeleteRegisteredModelAlias()
    alias = await field(asked, message, "alias")
    if alias.lower() in RESERVED_ALIASES:
        raise errors.Refused(
            "alias", alias, "is set by evaluation and deployment only", "use: cellwork model promote, or another alias"
        )


async def check_experiment(asked: Asked, match: re.Match[str], door: Door) -> None:
    from mlflow.protos.service_pb2 import CreateExperiment

    _check_location(await field(asked, CreateExperiment(), "artifact_location"), empty=True)
    await check_kept(asked, match, door)


async def check_version(asked: Asked, match: re.Match[str], door: Door) -> None:
    from mlflow.protos.model_registry_pb2 import CreateModelVersion

    _check_location(await field(asked, CreateModelVersion(), "source"), empty=False)
    await check_made(asked, match, door)


def _check_location(location: str, *, empty: bool) -> None:
    if not (location.startswith(LOCATIONS) or (empty and not location)):
        raise errors.Refused(
            "artifact location", location, "is not the platform's", "leave it out, or log the model in a run first"
        )


async def check_artifact(asked: Asked, match: re.Match[str], door: Door) -> None:
    """Refuse a write into the folder of a registered version: its content is what was evaluated."""
    path = match["path"].strip("/")
    for folder in registered_folders():
        if path == folder or path.startswith(folder + "/") or folder.startswith(path + "/"):
            raise errors.Refused(
                "artifact", path, "belongs to a registered version", "log a new model and register that"
            )


def registered_folders() -> list[str]:
    """Return the artifact folders of all registered versions, below the artifact root."""
    from mlflow.server.handlers import _get_model_registry_store
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

    with _get_model_registry_store().ManagedSessionMaker() as session:
        rows = session.query(SqlModelVersion.storage_location, SqlModelVersion.source).all()
    prefix = "mlflow-artifacts:/"
    return [
        location[len(prefix) :].strip("/")
        for row in rows
        for location in row
        if location and location.startswith(prefix)
    ]


RULES = (
    _rule("GET", r"/|/version|/static-files/.+", "models:read"),
    _rule("GET", API3 + r"/server-info", "models:read"),
    _rule(
        "GET",
        API
        + r"/(?:artifacts/list|experiments/(?:get|get-by-name|search)|runs/get|metrics/get-history(?:-bulk|-bulk-interval)?)",
        "models:read",
    ),
    _rule(
        "GET",
        API
        + r"/(?:registered-models/(?:alias|get|get-latest-versions|search)|model-versions/(?:get|get-download-uri|search))",
        "models:read",
    ),
    _rule("GET", API + r"/logged-models/[\w-]+(?:/artifacts/(?:directories|files))?", "models:read"),
    _rule(
        "POST",
        API
        + r"/(?:experiments/(?:search|search-datasets)|runs/search|logged-models/search|registered-models/get-latest-versions)",
        "models:read",
    ),
    _rule("GET", API3 + r"/(?:traces/get|datasets/search)", "models:read"),
    _rule("POST", API3 + r"/(?:traces/search|datasets/search)", "models:read"),
    _rule("POST", r"/graphql", "models:read"),
    _rule("GET", ARTIFACTS + r"(?:/.+)?", "models:read"),
    _rule("GET", r"/get-artifact|/model-versions/get-artifact", "models:read"),
    _rule("POST", API + r"/experiments/create", "models:write", check_experiment),
    _rule("POST", API + r"/experiments/(?:update|delete|restore)", "models:write"),
    _rule("POST", API + r"/experiments/(?:set|delete)-experiment-tag", "models:write", check_kept),
    _rule("POST", API + r"/runs/create", "models:write", check_made),
    _rule("POST", API + r"/runs/(?:set-tag|delete-tag|log-batch)", "models:write", check_kept),
    _rule(
        "POST",
        API + r"/runs/(?:update|delete|restore|outputs|log-(?:metric|parameter|inputs|model))",
        "models:write",
    ),
    _rule("POST", API + r"/logged-models", "models:write", check_kept),
    _rule("POST", API + r"/logged-models/[\w-]+/params", "models:write"),
    _rule("PATCH", API + r"/logged-models/[\w-]+", "models:write"),
    _rule("PATCH", API + r"/logged-models/[\w-]+/tags", "models:write", check_kept),
    _rule("DELETE", API + r"/logged-models/[\w-]+/tags/(?P<key>[^/]+)", "models:write", check_kept),
    _rule("POST", API + r"/registered-models/(?:create|set-tag)", "models:write", check_kept),
    _rule("PATCH", API + r"/(?:registered-models|model-versions)/update", "models:write"),
    _rule("DELETE", API + r"/(?:registered-models|model-versions)/delete-tag", "models:write", check_kept),
    _rule("POST", API + r"/model-versions/create", "models:write", check_version),
    _rule("POST", API + r"/model-versions/set-tag", "models:write", check_kept),
    _rule("POST DELETE", API + r"/registered-models/alias", "models:write", check_alias),
    _rule("PUT", ARTIFACTS + r"/(?P<path>.+)", "models:write", check_artifact),
    _rule("POST", API + r"/(?:registered-models/rename|model-versions/transition-stage)"),
    _rule("DELETE", API + r"/(?:registered-models|model-versions)/delete"),
    _rule("DELETE", API + r"/logged-models/[\w-]+"),
    _rule("DELETE", ARTIFACTS + r"/.+"),
)


def rules(services: Client, *, bounded: bool = False) -> Rules:
    """Return the door's rules; what an author says of a run or a version is held against what `services` know.

    With `bounded`, people see what belongs to their projects and nothing else (`boundary`).
    """

    async def judge(principal: Principal, asked: Asked) -> None:
        await _judge(Door(principal, services), asked)
        if bounded and principal.kind != "service":
            await boundary.check(asked, principal)

    return judge


async def _judge(door: Door, asked: Asked) -> None:
    """Let pass what a rule names; gateway, jobs, assistant, webhooks, traces' intake and whatever comes new are in none."""
    for rule in RULES:
        match = rule.pattern.fullmatch(asked.path)
        if match and asked.method in rule.methods.split():
            break
    else:
        raise errors.Refused(
            "request",
            f"{asked.method} {asked.path}",
            "is not opened here",
            "the platform opens tracking, registry and artifacts",
        )
    platform = door.principal.kind == "service" and door.principal.name == PLATFORM
    if not rule.scope and not platform:
        raise errors.Refused(
            "request",
            f"{asked.method} {asked.path}",
            "is the platform's alone",
            "what is registered stays, so that predictions can be traced",
        )
    if rule.scope:
        require(door.principal, rule.scope)
    if rule.guard and not platform:
        await rule.guard(asked, match, door)


def dialect(error: errors.CellworkError, status: int) -> dict[str, str]:
    """Say it in MLflow's words too, so that its client raises with our message."""
    return {"error_code": CODES.get(status, "INTERNAL_ERROR"), "message": str(error)}


def mlflow_app(home: Home, database_url: str) -> ASGIApp:
    """Return MLflow's app on its database and artifact folder. Its configuration is the environment, read at import."""
    root = home.artifacts()
    root.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": database_url,
        "_MLFLOW_SERVER_REGISTRY_STORE": database_url,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": root.as_uri(),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",  # host and origin are the gate's to check
    }
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database_url, database_url, "mlflow-artifacts:/")
    return app  # type: ignore[no-any-return]


def build(context: Context) -> ASGIApp:
    login = Login.of(context, "mlflow")
    app = mlflow_app(context.home, context.database_url("mlflow"))
    bounded = context.settings.trust == "team"
    return Gate(app, login, rules(context.client("mlflow"), bounded=bounded), dialect=dialect)


if __name__ == "__main__":
    context = Context.load()
    serve(build(context), "127.0.0.1", context.ports["mlflow"])
