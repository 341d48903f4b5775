"""Model folders: digest, trust rule, columns, and the round trip into a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from cellwork.errors import BadInput, Refused
from cellwork.models import columns, package, registry
from cellwork.models.columns import Column, to_pandas

FRAME = pl.DataFrame(
    {
        "hour": np.arange(200) % 24,
        "carrier": [["AA", "BB", None][k % 3] for k in range(200)],
        "wet": [k % 5 == 0 for k in range(200)],
        "weather__temp": np.random.default_rng(0).normal(50, 10, 200),
    }
)
LATE = ((np.arange(200) % 24) > 12).astype(int)


def encoded(last: Any) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    rest = make_pipeline(SimpleImputer(), StandardScaler())
    return make_pipeline(
        make_column_transformer((encoder, ["carrier"]), (rest, ["hour", "wet", "weather__temp"])), last
    )


def saved(model: Any, folder: Path, frame: pl.DataFrame = FRAME) -> Path:
    rows = frame.head(3).to_dicts()
    kind: Any = "classifier" if hasattr(model, "predict_proba") else "regressor"
    registry.save(model, package.Manifest(kind=kind, columns=columns.kinds(frame), example=rows), folder)
    return folder


SCRIPT = """
import json, sys
from pathlib import Path
import polars as pl
from cellwork.models import package
from cellwork.models.columns import to_pandas
rows, answers = pl.read_parquet(sys.argv[1]), {}
for folder in map(Path, sys.argv[2:]):
    frame = to_pandas(rows, package.read(folder).columns)
    answers[folder.name] = package.scores(package.load(folder), frame).tolist()
print(json.dumps(answers))
"""


def test_models_score_in_a_fresh_process_as_they_did_here(tmp_path: Path) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    kinds = {
        "forest": RandomForestClassifier(20),
        "boosted": HistGradientBoostingClassifier(max_iter=20),
        "logistic": LogisticRegression(),
    }
    frame = to_pandas(FRAME)
    models = {name: encoded(last).fit(frame, LATE) for name, last in kinds.items()}
    folders = [str(saved(model, tmp_path / name)) for name, model in models.items()]
    FRAME.write_parquet(tmp_path / "rows.parquet")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rows.parquet"), *folders]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(answer.stdout) == {
        name: model.predict_proba(frame)[:, 1].tolist() for name, model in models.items()
    }


def test_the_digest_sees_every_byte_and_every_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    (tmp_path / "y").write_text("2")
    seen = {package.digest(tmp_path)}
    assert package.digest(tmp_path) in seen
    (tmp_path / "y").write_text("3")
    seen.add(package.digest(tmp_path))
    (tmp_path / "y").rename(tmp_path / "z")
    seen.add(package.digest(tmp_path))
    (tmp_path / "empty").write_text("")
    seen.add(package.digest(tmp_path))
    assert len(seen) == 4


class Custom:
    """Not scikit-learn's: its code would run where the model is loaded."""

    def predict(self, X: Any) -> Any:
        return np.zeros(len(X))


def test_a_class_of_the_authors_own_is_not_saved_and_not_loaded(tmp_path: Path) -> None:
    import skops.io

    with pytest.raises(Refused, match=r"Custom.*is not one that may be loaded"):
        saved(Custom(), tmp_path / "model")
    folder = saved(encoded_tree(), tmp_path / "good")
    (folder / package.MODEL).write_bytes(skops.io.dumps(Custom()))
    with pytest.raises(Refused, match="Custom"):
        package.load(folder)


def encoded_tree() -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return encoded(DecisionTreeClassifier(max_depth=2)).fit(to_pandas(FRAME), LATE)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "numpy.testing._private.utils.runstring",
        "numpy.load",
        "builtins.eval",
        "sklearn.nothing.Here",
        "scipy",
    ],
)
def test_a_function_or_a_stranger_is_never_harmless(name: str) -> None:
    assert not package._is_harmless(name)


def test_a_function_that_runs_text_is_not_loaded(tmp_path: Path) -> None:
    """`FunctionTransformer` takes any function by name; one that is no class of a trusted package is refused before it is called."""
    import shutil

    import skops.io
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    folder = saved(encoded_tree(), tmp_path / "model")
    (folder / package.MODEL).write_bytes(skops.io.dumps(make_pipeline(FunctionTransformer(shutil.rmtree))))
    with pytest.raises(Refused, match="rmtree"):
        package.load(folder)


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_broken_model_file_is_bad_input_not_a_traceback(damage: bytes | None, tmp_path: Path) -> None:
    folder = saved(encoded_tree(), tmp_path / "model")
    path = folder / package.MODEL
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(BadInput, match="can't be loaded"):
        package.load(folder)


def test_a_folder_without_manifest_says_how_to_register(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cellwork\.json.*register"):
        package.read(tmp_path)


def test_frames_of_polars_pandas_and_lists_reach_the_model_as_one() -> None:
    """Training, evaluation and serving bring three kinds of frame."""
    kinds = columns.kinds(FRAME)
    assert [(c.name, c.kind) for c in kinds] == [
        ("hour", "number"),
        ("carrier", "text"),
        ("wet", "flag"),
        ("weather__temp", "number"),
    ]
    first = to_pandas(FRAME)
    assert first.dtypes.astype(str).tolist() == ["float64", "object", "float64", "float64"]
    pd.testing.assert_frame_equal(first, to_pandas(FRAME.to_pandas()))
    pd.testing.assert_frame_equal(first, to_pandas(FRAME.to_dict(as_series=False), kinds))
    pd.testing.assert_frame_equal(first, to_pandas(first, kinds))
    pd.testing.assert_frame_equal(first[["wet", "hour"]], to_pandas(FRAME, [kinds[2], kinds[0]]))


def test_what_no_model_can_take_is_told_by_column() -> None:
    with pytest.raises(BadInput, match="model column 'hours': is not in the frame; did you mean 'hour'"):
        to_pandas(FRAME, [Column(name="hours", kind="number")])
    with pytest.raises(BadInput, match="'carrier': holds values that are no numbers"):
        to_pandas(FRAME, [Column(name="carrier", kind="number")])
    with pytest.raises(BadInput, match="'at': holds Datetime"):
        to_pandas(pl.DataFrame({"at": [pd.Timestamp("2013-01-01")]}))
