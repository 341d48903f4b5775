"""The gate over HTTP: its list, the project's rules, overrides, promotion and the way back."""

from __future__ import annotations

from typing import Any

from cellwork import ids
from cellwork.errors import BadInput
from cellwork.wire.gate import Gate, KeptRules, Override, OverrideRequest, Promoted, Promotion, Rollback, RulesRequest
from cellwork_hub.platform import gate_rules, promotion
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = (
    "ALTER TABLE promotions ADD COLUMN state TEXT NOT NULL DEFAULT 'done'",
    "CREATE UNIQUE INDEX promotions_begun ON promotions (name) WHERE state = 'begun'",
    "CREATE TABLE gate_rules (project TEXT NOT NULL, revision INTEGER NOT NULL, record {json} NOT NULL, PRIMARY KEY (project, revision))",
    "CREATE TABLE gate_overrides (id TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, record {json} NOT NULL)",
    "CREATE INDEX gate_overrides_name ON gate_overrides (name, version)",
)


def _number(call: Call, name: str) -> int:
    if not call.path[name].isdecimal():
        raise BadInput("version", call.path[name], "is not a number", "write its number, e.g. 3")
    return int(call.path[name])


def routes(state: State) -> list[Route]:
    def get_gate(call: Call) -> Gate:
        return promotion.gate(state, f"{call.path['project']}/{call.path['name']}", _number(call, "version"))

    def post_gate(call: Call) -> Promoted:
        return promotion.promote(state, call, call.body)

    def post_rollback(call: Call) -> Promoted:
        return promotion.rollback(state, call, call.body)

    def post_override(call: Call) -> Override:
        request: OverrideRequest = call.body
        found = promotion.gate(state, request.name, request.version)
        with state.context.client("cellwork") as client:
            return gate_rules.override(state, client, call, request, found)

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
        route("GET", "/api/v1/gate/moves", get_moves, "models:read", list[Promoted], "The moves of a model's champion, newest first."),
        route("GET", "/api/v1/gate/rules", get_rules, "models:read", KeptRules, "The gate's rules of a project."),
        route("PUT", "/api/v1/gate/rules", put_rules, "models:promote", KeptRules, "Set the gate's rules of a project.", RulesRequest),
    ]  # fmt: skip
