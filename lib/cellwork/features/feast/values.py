"""Feast's values and ours: a plain value is kept as itself, any other (lists, maps, bytes, times) as Feast's own bytes.

So what a pipeline wrote online is read by Feast's clients, and what Feast wrote by ours, as far as it is a plain value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

OTHER = 70
"""msgpack's extension type of a serialized Feast value."""
PLAIN = {"int32_val", "int64_val", "double_val", "float_val", "string_val", "bool_val"}
SLOTS = {
    ValueType.INT32: "int32_val", ValueType.INT64: "int64_val", ValueType.DOUBLE: "double_val", ValueType.FLOAT: "float_val",
    ValueType.STRING: "string_val", ValueType.BOOL: "bool_val",
}  # fmt: skip
EMPTY = Value()


def to_ours(value: Value) -> Any:
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    if kind in PLAIN:
        return getattr(value, kind)
    return msgspec.msgpack.Ext(OTHER, value.SerializeToString())


def from_ours(kind: ValueType) -> Callable[[Any], Value]:
    """Return what makes a Feast value of `kind` from one of ours."""
    slot = SLOTS.get(kind)

    def made(value: Any) -> Value:
        if value is None:
            return EMPTY
        if isinstance(value, msgspec.msgpack.Ext):
            found = Value()
            found.ParseFromString(value.data)
            return found
        if slot is None:
            (other,) = python_values_to_proto_values([value], kind)
            return other  # type: ignore[no-any-return]
        return Value(**{slot: value})

    return made


def entity(key: EntityKey) -> list[Any]:
    """Return the values of the join keys, in order of their names, as our entity keys want them."""
    pairs = sorted(zip(key.join_keys, key.entity_values, strict=True), key=lambda pair: pair[0])
    return [to_ours(value) for _, value in pairs]
