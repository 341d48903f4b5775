"""The OpenAPI description of a service, made from its routes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cellwork import __version__
from cellwork_hub.route import Route


def describe(name: str, routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of `routes`."""
    types = [t for r in routes for t in (r.body, r.answer) if t not in (None, bytes)]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = {repr(t): schema for t, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.method == "WEBSOCKET":  # OpenAPI knows none; the page of routes does
            continue
        operation: dict[str, Any] = {
            "summary": route.doc,
            "parameters": [
                {"name": p, "in": "path", "required": True, "schema": {"type": "string"}}
                for p in re.findall(r"{(\w+)}", route.path)
            ],
            "responses": {
                str(route.status): {"description": "ok"},
                "default": {"description": "a problem", "content": {"application/problem+json": {}}},
            },
        }
        if route.scope:
            operation["security"] = [{"hub": [route.scope]}]
        if route.body is bytes:
            operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
        elif route.body is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": by_type[repr(route.body)]}},
            }
        if route.answer not in (None, bytes):
            operation["responses"][str(route.status)]["content"] = {
                "application/json": {"schema": by_type[repr(route.answer)]}
            }
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    security = {"hub": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0", "info": {"title": f"Cellwork {name}", "version": __version__}, "servers": [{"url": f"/services/{name}"}],
        "paths": paths, "components": {"schemas": json.loads(msgspec.json.encode(components)), "securitySchemes": security},
    }  # fmt: skip
