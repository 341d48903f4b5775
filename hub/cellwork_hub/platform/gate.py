"""The gate over HTTP: its list, the project's rules, overrides, promotion and the way back."""

from __future__ import annotations

from typing import Any

from cellwork import ids
from cellwork.errors import BadInput
from cellwork.models import versions
from cellwork.wire.gate import (
    Gate,
    KeptRules,
    Override,
    OverrideRequest,
    Promoted,
    Promotion,
    Rollback,
    RulesRequest,
    Trusted,
    TrustRequest,
)
from cellwork_hub.platform import code_trust, gate_rules, promotion, scoring
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = (
    "ALTER TABLE promotions ADD COLUMN state TEXT NOT NULL DEFAULT 'done'",
    "CREATE UNIQUE INDEX promotions_begun ON promotions (name) WHERE state = 'begun'",
    "CREATE TABLE gate_rules (project TEXT NOT NULL, revision INTEGER NOT NULL, record {json} NOT NULL, PRIMARY KEY (project, revision))",
    "CREATE TABLE gate_overrides (id TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, record {json} NOT NULL)",
    "CREATE TABLE code_trust (project TEXT NOT NULL, sha256 TEXT NOT NULL, record {json} NOT NULL, PRIMARY KEY (project, sha256))",
    "CREATE INDEX gate_overrides_name ON gate_overrides (name, version)",
)


def _number(call: Call, name: str) -> int:
    if not call.path[name].isdecimal():
        raise BadInput("version", call.path[name], "is not a number", "write its number, e.g. 3")
    return int(call.path[name])


def routes(state: State) -> list[Route]:
    def get_gate(call: Call) -> Gate:
        name, number = f"{call.path['project']}/{call.path['name']}", _number(call, "version")
        return promotion.gate(state, name, number, call.query.get("for", ""))

    def post_gate(call: Call) -> Promoted:
        return promotion.promote(state, call, call.body)

    def post_rollback(call: Call) -> Promoted:
        return promotion.rollback(state, call, call.body)

    def post_override(call: Call) -> Override:
        request: OverrideRequest = call.body
        found = promotion.gate(state, request.name, request.version)
        with state.context.client("cellwork") as client:
            return gate_rules.override(state, client, call, request, found)

    def post_trust(call: Call) -> list[Trusted]:
        request: TrustRequest = call.body
        with state.context.client("cellwork") as client:
            version = versions.get(client, request.name, request.version)
            return code_trust.give(state, call, request, version, scoring.copy(state, client, version))

    def get_code(call: Call) -> dict[str, str]:
        name = f"{call.path['project']}/{call.path['name']}"
        with state.context.client("cellwork") as client:
            version = versions.get(client, name, _number(call, "version"))
            return code_trust.look(scoring.copy(state, client, version))

    def get_moves(call: Call) -> list[Promoted]:
        name = call.required("name")
        ids.split_name(name)
        return promotion.moves(state, name, call.limit(100, 1000))

    def get_rules(call: Call) -> KeptRules:
        return gate_rules.kept(state, call.required("project"))

    def put_rules(call: Call) -> KeptRules:
        return gate_rules.keep(state, call, call.body)

    def route(method: str, path: str, handler: Any, scope: str, answer: Any, doc: str, body: Any = None) -> Route:
        return Route(method, path, handler, scope=scope, body=body, answer=answer, doc=doc)

    return [
        route("GET", "/api/v1/gate/{project}/{name}/{version}", get_gate, "models:read", Gate, "What the gate says about a version, line by line."),
        route("POST", "/api/v1/gate", post_gate, "models:promote", Promoted, "Make a version the champion if the gate passes.", Promotion),
        route("POST", "/api/v1/gate/rollback", post_rollback, "models:promote", Promoted, "Make the champion before the champion again.", Rollback),
        route("POST", "/api/v1/gate/overrides", post_override, "models:promote", Override, "Let a version pass a line that blocks, with a reason; in team trust not one's own version.", OverrideRequest),
        route("GET", "/api/v1/gate/{project}/{name}/{version}/code", get_code, "models:read", dict[str, str], "The source that a version brings and that somebody has to trust, by path."),
        route("POST", "/api/v1/gate/trust", post_trust, "models:promote", list[Trusted], "Let the code that a version brings run on the platform; in team trust not one's own.", TrustRequest),
        route("GET", "/api/v1/gate/moves", get_moves, "models:read", list[Promoted], "The moves of a model's champion, newest first."),
        route("GET", "/api/v1/gate/rules", get_rules, "models:read", KeptRules, "The gate's rules of a project."),
        route("PUT", "/api/v1/gate/rules", put_rules, "models:promote", KeptRules, "Set the gate's rules of a project.", RulesRequest),
    ]  # fmt: skip
