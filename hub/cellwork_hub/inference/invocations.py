"""MLflow's scoring protocol as a second door to the same endpoint: `dataframe_split`, `dataframe_records`, `inputs`, `instances`."""

from __future__ import annotations

from typing import Any

import msgspec

from cellwork.errors import BadInput
from cellwork.serving.plan import Plan
from cellwork.wire.endpoints import Answer, Row
from cellwork_hub.route import Malformed

FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances")


def rows(body: bytes, plan: Plan) -> list[Row]:
    """Return the rows of a request to MLflow's `/invocations`."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed("body", "", f"is not JSON: {error}", "send a JSON object") from None
    given = [name for name in FORMATS if isinstance(document, dict) and name in document]
    if len(given) != 1:
        raise BadInput("body", ", ".join(given), "must hold exactly one format", f"send one of {', '.join(FORMATS)}")
    content = document[given[0]]
    columns = [column.name for column in plan.columns]
    if given[0] == "dataframe_split":
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise BadInput("dataframe_split", "", "lacks its data", "send {columns: […], data: [[…], …]}")
        columns, content = _names(content.get("columns", columns)), content["data"]
    elif isinstance(content, dict):
        content = _records(content)
    if not isinstance(content, list):
        raise BadInput(given[0], "", "is not a list of rows", "send a list of objects or of lists")
    return [_row(values, columns, number) for number, values in enumerate(content)]


def _names(columns: Any) -> list[str]:
    """Return the columns of a frame; numbers, the tuples of a MultiIndex and doubled names are no names."""
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise BadInput("columns", columns, "are no list of texts", "name each column as the model does")
    doubled = sorted({name for name in columns if columns.count(name) > 1}) if len({*columns}) < len(columns) else []
    if doubled:
        raise BadInput("columns", ", ".join(doubled), "are there more than once", "send each once")
    return columns


def _records(by_column: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn {column: [values]} (or {column: value}, one row) into rows."""
    lists = {name: values if isinstance(values, list) else [values] for name, values in by_column.items()}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        raise BadInput("columns", sorted(lengths), "are of different lengths", "send one value a row in each")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _row(values: Any, columns: list[str], number: int) -> Row:
    if isinstance(values, dict):
        return Row(features=values)
    if not isinstance(values, list) or len(values) != len(columns):
        raise BadInput(
            f"row {number}", values, f"has not {len(columns)} values", f"the columns are {', '.join(map(str, columns))}"
        )
    return Row(features=dict(zip(columns, values, strict=True)))


def answer(scored: Answer) -> dict[str, Any]:
    """Return MLflow's answer, with our ids beside it."""
    return {
        "predictions": [output.score for output in scored.outputs],
        "ids": [output.id for output in scored.outputs],
        "model": scored.model,
        "route": scored.route,
    }
