"""A definition of one view, and the same under other names."""

from __future__ import annotations

from cellwork.wire.features import Aggregate, Definitions, Entity, Field, Prepared, Rolling, View

LATE = "SELECT *, delay AS late FROM flights"


def definitions_of(sql: str, *, project: str = "air", rename: bool = False, window: str = "6h") -> Definitions:
    names = {"view": "theirs", "rows": "legs", "n": "m", "late": "slow"} if rename else {}

    def named(name: str) -> str:
        return names.get(name, name)

    aggregates = {named("n"): Aggregate(function="count"), named("late"): Aggregate(function="mean", column="late")}
    rolling = Rolling(
        rows=named("rows"), event="planned", known="landed", window=window, every="1h", aggregates=aggregates
    )
    fields = [Field(name=name, type="Float64") for name in aggregates]
    return Definitions(
        project=project,
        prepared=[Prepared(name=named("rows"), sources=["flights"], sql=sql.replace(" ", "\n  ") if rename else sql)],
        entities=[Entity(name="origin", join_keys=["origin"])],
        views=[View(name=named("view"), entities=["origin"], fields=fields, pipeline=rolling)],
    )
