"""Training-serving skew: values that were served beside those a point-in-time join gives for the same entity and time.

Pure: frames in, a row a feature out. They may differ because a value reached the online store late, was overwritten, or was made
by other code; whichever it is, a model then predicts from something it has never learned from.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellwork.wire.skew import FeatureSkew

if TYPE_CHECKING:
    import polars as pl


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same in every bit; a whole number is the float of its value, NaN is NaN."""
    if isinstance(one, bool | str) or isinstance(other, bool | str) or one is None or other is None:
        return type(one) is type(other) and bool(one == other)
    return struct.pack("<d", one) == struct.pack("<d", other)


def compare(served: pl.DataFrame, joined: pl.DataFrame, features: Sequence[str]) -> list[FeatureSkew]:
    """Return the skew of `features`, those with most differences first.

    Parameters
    ----------
    served, joined : the same rows in the same order
        Columns ``id``, `features`, and ``view__event_timestamp`` of their views.
    """
    found = [_feature(name, served, joined) for name in features]
    return sorted(found, key=lambda each: (-each.differ, each.feature))


def _feature(name: str, served: pl.DataFrame, joined: pl.DataFrame) -> FeatureSkew:
    online, training = served.get_column(name).to_list(), joined.get_column(name).to_list()
    event = f"{name.split('__', 1)[0]}__event_timestamp"
    times = zip(served.get_column(event).to_list(), joined.get_column(event).to_list(), strict=True)
    pairs = list(zip(online, training, strict=True))
    odd = [k for k, (a, b) in enumerate(pairs) if not same(a, b)]
    numbers = [(a, b) for a, b in pairs if _number(a) and _number(b)]
    return FeatureSkew(
        feature=name, rows=len(pairs), differ=len(odd),
        missing_online=sum(a is None and b is not None for a, b in pairs),
        only_online=sum(a is not None and b is None for a, b in pairs),
        older=sum(a is not None and b is not None and a < b for a, b in times),
        mean_online=sum(a for a, _ in numbers) / len(numbers) if numbers else None,
        mean_training=sum(b for _, b in numbers) / len(numbers) if numbers else None,
        example=served.get_column("id")[odd[0]] if odd else "",
    )  # fmt: skip


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
