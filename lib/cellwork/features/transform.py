"""Transformers and selectors that are fitted once, recorded as plain values, and applied by one code to a frame or to a single row.

`Transform` has scikit-learn's interface and goes into a pipeline and into a registered model; what it learned is a `Transformer`, whose id is a
hash of it. Steps are written with `impute`, `clip`, `scale`, `code` and, from `cellwork.features.select`, `choose`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellwork import ids
from cellwork.client import connect
from cellwork.data.ingest import located
from cellwork.errors import BadInput, Conflict, near_miss
from cellwork.features import select
from cellwork.training.estimator import Estimator
from cellwork.wire.transformers import Clipped, Coded, Filled, Kept, Scaled, Step, Transformer

if TYPE_CHECKING:
    import pandas as pd

Spec = dict[str, Any]
Columns = dict[str, Any]
"""Column -> array: numbers float64 with NaN, texts objects with None."""


def impute(*columns: str, by: str = "mean", value: float | str | None = None) -> Spec:
    """Fill missing values with the column's ``mean``, ``median`` or ``frequent`` value, or with `value`."""
    return {"kind": "impute", "columns": list(columns), "by": by, "value": value}


def clip(*columns: str, share: float = 0.01) -> Spec:
    """Bring what lies beyond the quantiles `share` and 1 - `share` back to them."""
    return {"kind": "clip", "columns": list(columns), "share": share}


def scale(*columns: str) -> Spec:
    """Take away the mean and divide by the standard deviation."""
    return {"kind": "scale", "columns": list(columns)}


def code(*columns: str, most: int = 20) -> Spec:
    """Make a column of 0 and 1 of each of the `most` frequent texts."""
    return {"kind": "code", "columns": list(columns), "most": most}


class Transform(Estimator):
    """Steps in their order, as one scikit-learn transformer: a pandas frame in, a pandas frame of the columns that are left out.

    Parameters
    ----------
    steps : what `impute`, `clip`, `scale`, `code` and `select.choose` return.
    """

    _NAMES = ("steps",)

    def __init__(self, steps: Sequence[Spec] = ()) -> None:
        self.steps = steps

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags(),
            regressor_tags=None, classifier_tags=None, input_tags=InputTags(string=True, allow_nan=True),
        )  # fmt: skip

    def fit(self, X: Any, y: Any = None) -> Transform:
        """Learn the steps from `X`, (n, columns) with names, and the label `y`, (n,), where one of them needs it.

        Raises
        ------
        BadInput
            A column does not exist or is of the wrong kind, or a step needs a label.
        """
        import msgspec

        columns = _columns(X, [str(name) for name in X.columns])
        made, inputs = [], list(columns)
        for spec in self.steps:
            for step in _fitted(spec, columns, y):
                columns = _applied(step, columns)
                made.append(step)
        self.recorded_ = msgspec.json.encode(identified(Transformer(inputs=inputs, steps=made))).decode()
        self.columns_ = list(columns)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> pd.DataFrame:
        return self.fit(X, y).transform(X)

    def transform(self, X: Any) -> pd.DataFrame:
        return _frame(applied(self.recorded, X), X)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        import numpy as np

        return np.asarray(self.columns_, dtype=object)

    @property
    def recorded(self) -> Transformer:
        """What was learned, as it is kept by the platform."""
        import msgspec

        return msgspec.json.decode(self.recorded_, type=Transformer)


def keep(fitted: Transform, name: str, *, dataset: str = "", project: str | None = None) -> Transformer:
    """Keep what `fitted` learned with the platform, under `name`; `dataset` is the id of what it was fitted on."""
    import msgspec

    space, short = located(name, project)
    record = msgspec.structs.replace(fitted.recorded, name=short, dataset=dataset)
    return connect().features.keep_transformer(space, record)


def load(transformer: str, *, project: str | None = None) -> Transform:
    """Return the fitted steps that are kept under the id `transformer`."""
    return from_recorded(connect().features.transformer(located("any", project)[0], transformer))


def from_recorded(recorded: Transformer) -> Transform:
    """Return the fitted steps of a record; raises Conflict if the record is not what its id says."""
    import msgspec

    if recorded.id != identified(recorded).id:
        raise Conflict("transformer", recorded.id, "is not what its id says", "fetch it again, or fit anew")
    steps = Transform()
    steps.recorded_ = msgspec.json.encode(recorded).decode()
    empty: Columns = {name: _array([]) for name in recorded.inputs}
    for step in recorded.steps:
        empty = _applied(step, empty)
    steps.columns_ = list(empty)
    return steps


def identified(recorded: Transformer) -> Transformer:
    """Return `recorded` with the id of its inputs and steps."""
    import msgspec

    content = msgspec.json.encode((recorded.inputs, recorded.steps))
    return msgspec.structs.replace(recorded, id=ids.of_content("tf", content))


def applied(recorded: Transformer, rows: Any) -> Columns:
    """Return the columns that `recorded` makes of `rows`: a polars or pandas frame, or one row as a mapping of values."""
    if isinstance(rows, Mapping):
        rows = {name: [value] for name, value in rows.items()}
    columns = _columns(rows, recorded.inputs)
    for step in recorded.steps:
        columns = _applied(step, columns)
    return columns


def _frame(columns: Columns, like: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns, index=getattr(like, "index", None))


def _columns(rows: Any, wanted: Sequence[str]) -> Columns:
    there = [str(name) for name in (rows if isinstance(rows, Mapping) else rows.columns)]
    for name in wanted:
        if name not in there:
            raise BadInput("column of a transformer", name, "is not in the rows", near_miss(name, there))
    return {name: _array(rows[name]) for name in wanted}


def _array(values: Any) -> Any:
    """Return numbers and true/false as float64, all else as objects with None where a value is missing."""
    import numpy as np
    import pandas as pd

    found = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values, dtype=object)
    if found.dtype.kind in "biuf":
        return found.astype(np.float64)
    missing = pd.isna(found)
    if all(isinstance(value, int | float | np.number | np.bool_) for value in found[~missing]):
        return np.where(missing, np.nan, found).astype(np.float64)
    texts = found.astype(object)
    texts[missing] = None
    return texts


# Applying


def _applied(step: Step, columns: Columns) -> Columns:
    import numpy as np

    if isinstance(step, Kept):
        return {name: columns[name] for name in step.columns}
    values = columns[step.column]
    if isinstance(step, Coded):
        coded = {f"{step.column}={c}": (values == c).astype(np.float64) for c in step.categories}
        return {
            k: v for name in columns for k, v in (coded.items() if name == step.column else [(name, columns[name])])
        }
    if isinstance(step, Filled):
        made = _filled(values, step.value)
    elif isinstance(step, Clipped):
        made = np.clip(values.astype(np.float64), step.least, step.greatest)
    else:
        made = (values.astype(np.float64) - step.mean) / step.deviation
    return {**columns, step.column: made}


def _filled(values: Any, value: float | str) -> Any:
    import numpy as np
    import pandas as pd

    made = np.where(pd.isna(values), value, values) if isinstance(value, str) else values.astype(np.float64)
    return made.astype(object) if isinstance(value, str) else np.where(np.isnan(made), value, made)


# Learning


def _fitted(spec: Spec, columns: Columns, y: Any) -> list[Step]:
    kind = spec.get("kind", "")
    if kind == "choose":
        return [select.chosen(columns, y, count=spec["count"], by=spec["by"], seed=spec["seed"])]
    learn: dict[str, Callable[[str, Any, Spec], Step]] = {
        "impute": _impute,
        "clip": _clip,
        "scale": _scale,
        "code": _code,
    }
    if kind not in learn:
        raise BadInput("step", kind, "is not known", near_miss(str(kind), [*learn, "choose"]))
    for name in spec["columns"]:
        if name not in columns:
            raise BadInput(f"column of step {kind!r}", name, "is not there (any more)", near_miss(name, columns))
    return [learn[kind](name, columns[name], spec) for name in spec["columns"]]


def _numbers(name: str, values: Any, kind: str) -> Any:
    """Return the values that are there; raises BadInput for texts and for a column without any."""
    import numpy as np

    if values.dtype == object:
        raise BadInput(f"column of step {kind!r}", name, "is text", "use impute(by='frequent') or code")
    there = values[np.isfinite(values)]
    if not len(there):
        raise BadInput(f"column of step {kind!r}", name, "has no value to learn from", "leave it out")
    return there


def _impute(name: str, values: Any, spec: Spec) -> Step:
    from collections import Counter

    import numpy as np

    by = spec["by"]
    if spec["value"] is not None:
        return Filled(column=name, value=spec["value"])
    if by == "frequent":
        there = [v for v in values.tolist() if v is not None and v == v]
        if not there:
            raise BadInput("column of step 'impute'", name, "has no value to learn from", "give a value")
        counts = Counter(there)
        return Filled(column=name, value=min(counts, key=lambda v: (-counts[v], v)))
    if by not in ("mean", "median"):
        raise BadInput("impute by", by, "is not known", near_miss(by, ("mean", "median", "frequent")))
    numbers = _numbers(name, values, "impute")
    return Filled(column=name, value=float(np.mean(numbers) if by == "mean" else np.median(numbers)))


def _clip(name: str, values: Any, spec: Spec) -> Step:
    import numpy as np

    least, greatest = np.quantile(_numbers(name, values, "clip"), [spec["share"], 1 - spec["share"]])
    return Clipped(column=name, least=float(least), greatest=float(greatest))


def _scale(name: str, values: Any, spec: Spec) -> Step:
    numbers = _numbers(name, values, "scale")
    return Scaled(column=name, mean=float(numbers.mean()), deviation=float(numbers.std()) or 1.0)


def _code(name: str, values: Any, spec: Spec) -> Step:
    from collections import Counter

    counts = Counter(value for value in values.tolist() if isinstance(value, str))
    if not counts:
        raise BadInput("column of step 'code'", name, "holds no text", "code is for categories")
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    return Coded(column=name, categories=ranked[: spec["most"]])
