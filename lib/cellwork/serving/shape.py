"""The usual request of one plan, as a type: decoded, checked and put in the model's order by msgspec in one pass.

What does not fit (a wrong value, an id, a time, an unknown name) is not refused here: `rows` returns None, and the request goes
the general way, where it gets its answer or its error. So nothing here needs a message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cellwork.serving.plan import LEAST_ID, MOST_ID, Column, Plan

Door = Literal["predict", "invocations"]
MOST_NUMBER = 1e308
MOST_TEXT = 600
"""Characters of a text that a caller chooses and the log keeps: PostgreSQL's index takes no more, nor does it take NUL."""
Id = str | Annotated[int, Meta(ge=LEAST_ID, le=MOST_ID)]
Unit = Annotated[str, Meta(max_length=MOST_TEXT, pattern=r"^[^\x00]*$")]
KINDS: dict[str, Any] = {
    "number": Annotated[float, Meta(ge=-MOST_NUMBER, le=MOST_NUMBER)] | None,
    "text": str | None,
    "flag": bool | None,
}


class Rows(msgspec.Struct):
    """Rows of a request: the model's columns in order, UNSET where a looked-up value may stand; entities where some came."""

    values: list[tuple[Any, ...]]
    entities: list[dict[str, str | int]] | None = None
    unit: str = ""


class Shape:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        features = _features(plan)
        none: Any = msgspec.field(default_factory=dict)
        fields = [
            ("features", features, msgspec.field(default_factory=features)),
            ("entities", dict[str, Id], none),
        ]
        row = msgspec.defstruct("Row", fields, forbid_unknown_fields=True)
        request = msgspec.defstruct("Request", [("rows", list[row]), ("unit", Unit, "")], forbid_unknown_fields=True)  # type: ignore[valid-type]
        self._request: msgspec.json.Decoder[Any] = msgspec.json.Decoder(request)
        self._invocations = msgspec.json.Decoder(_invocations(plan, features))
        self.names = plan.names
        self._join_keys = frozenset(key for source in plan.sources for key in source.join_keys)

    def rows(self, door: Door, body: bytes) -> Rows | None:
        """Return the rows of a usual request, else None."""
        try:
            return self._own(body) if door == "predict" else self._mlflow(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _own(self, body: bytes) -> Rows | None:
        asked = self._request.decode(body)
        rows = asked.rows
        values = [msgspec.structs.astuple(row.features) for row in rows]
        if not any(row.entities for row in rows):
            return Rows(values, None, asked.unit)
        entities = [row.entities for row in rows]
        return Rows(values, entities, asked.unit) if self._join_keys.issuperset(set().union(*entities)) else None

    def _mlflow(self, body: bytes) -> Rows | None:
        asked = self._invocations.decode(body)
        given = [value for value in msgspec.structs.astuple(asked) if value is not UNSET]
        if len(given) != 1:
            return None
        if asked.dataframe_split is not UNSET:
            split = asked.dataframe_split
            return Rows(split.data) if split.columns == self.names else None
        return Rows([msgspec.structs.astuple(features) for features in given[0]])


def _features(plan: Plan) -> Any:
    names = {f"f{k}": column.name for k, column in enumerate(plan.columns)}
    fields = [(f"f{k}", *_type(column)) for k, column in enumerate(plan.columns)]
    return msgspec.defstruct("Features", fields, rename=names, forbid_unknown_fields=True)


def _type(column: Column) -> tuple[Any, Any]:
    """Return type and default of a feature; one that can be looked up tells apart what is null and what was not sent."""
    kind = KINDS[column.kind]
    return (kind | UnsetType, UNSET) if column.view else (kind, None)


def _invocations(plan: Plan, features: Any) -> Any:
    row: Any = tuple[tuple(KINDS[column.kind] for column in plan.columns)]  # type: ignore[misc]
    split = msgspec.defstruct("Split", [("columns", list[str]), ("data", list[row])])
    fields: list[Any] = [("dataframe_split", split | UnsetType, UNSET)]
    fields += [(name, list[features] | UnsetType, UNSET) for name in ("dataframe_records", "inputs", "instances")]
    return msgspec.defstruct("Invocations", fields, forbid_unknown_fields=True)
