"""Bodies of requests to MLflow, read as MLflow reads them, so that a rule and MLflow see the same; what can't be read is refused."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from cellwork_hub.gate import Asked
from cellwork_hub.route import Malformed


def decode(body: bytes) -> dict[str, Any]:
    """Return a body as MLflow reads it: JSON, perhaps encoded twice."""
    try:
        value = json.loads(body) if body else {}
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Malformed("body", "", "is not JSON", "send a JSON document") from None
    if not isinstance(value, dict):
        raise Malformed("body", "", "is not a JSON object", "send an object")
    return value


async def field(asked: Asked, message: Any, name: str) -> str:
    """Return the field `name` of a request that MLflow reads into the protobuf `message`."""
    from google.protobuf.json_format import ParseError
    from mlflow.utils.proto_json_utils import parse_dict

    values = decode(await asked.body())
    query = dict(parse_qsl(asked.query.decode("latin-1")))
    try:
        parse_dict(values, message)
    except (ParseError, ValueError, TypeError):
        raise Malformed("body", "", "is not what MLflow takes here", "use MLflow's client") from None
    found = str(getattr(message, name))
    if query.get(name, found) != found:
        raise Malformed("request", name, "is given twice, differently", "give it once")
    return found
