"""Code of an author's own: it travels in the model's folder, and runs where somebody trusted just these bytes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from test_package import FRAME, LATE, SCRIPT, encoded

from cellwork.errors import BadInput, Refused
from cellwork.models import columns, package, registry, sandbox, wheels
from cellwork.models.columns import to_pandas

CODE = '''
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin


class Rush(TransformerMixin, BaseEstimator):
    """Whether it is an hour in which many leave; learned from the hours that are frequent."""

    def __init__(self, share=0.5):
        self.share = share

    def fit(self, X, y=None):
        hours, counts = np.unique(np.asarray(X, dtype=float), return_counts=True)
        self.hours_ = hours[counts >= self.share * counts.max()]
        return self

    def transform(self, X):
        return np.isin(np.asarray(X, dtype=float), self.hours_).astype(float)

    def get_feature_names_out(self, names=None):
        return np.asarray(names, dtype=object)
'''


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "rush_steps.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("rush_steps")
    sys.path.remove(str(folder))
    del sys.modules["rush_steps"]


def custom(steps: types.ModuleType) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(make_column_transformer((steps.Rush(), ["hour"])), LogisticRegression())


def saved(model: Any, folder: Path, *code: Any) -> Path:
    rows = FRAME.head(3).to_dicts()
    manifest = package.Manifest(kind="classifier", columns=columns.kinds(FRAME), example=rows)
    registry.save(model, manifest, folder, code=code)
    return folder


def fresh(folder: Path, rows: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", SCRIPT, str(rows), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_pipeline_with_a_class_of_ones_own_makes_the_round_trip_once_somebody_trusts_it(
    steps: types.ModuleType, tmp_path: Path
) -> None:
    model = custom(steps).fit(to_pandas(FRAME), LATE)
    folder = saved(model, tmp_path / "model", steps)
    FRAME.write_parquet(tmp_path / "rows.parquet")
    answer = fresh(folder, tmp_path / "rows.parquet")
    assert answer.returncode != 0
    assert "brings code that nobody has trusted here" in answer.stderr
    with pytest.raises(Refused, match="brings code that nobody has trusted here"):
        sandbox.score(folder, FRAME)
    before = package.digest(folder)
    wheels.trust(folder, package.read(folder).wheels, "eve")
    assert package.digest(folder) == before, "trust is no part of the version"
    answer = fresh(folder, tmp_path / "rows.parquet")
    expected = model.predict_proba(to_pandas(FRAME))[:, 1]
    assert json.loads(answer.stdout) == {"model": expected.tolist()}
    assert np.allclose(sandbox.score(folder, FRAME), expected)


def test_without_its_code_the_class_is_refused_and_the_way_out_is_said(steps: types.ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"rush_steps\.Rush.*register\(…, code=\[module\]\)"):
        saved(custom(steps).fit(to_pandas(FRAME), LATE), tmp_path / "model")
    with pytest.raises(BadInput, match=r"has no file; write its classes into a \.py file"):
        wheels.build(types.ModuleType("typed"), tmp_path)


def test_equal_code_makes_an_equal_wheel(steps: types.ModuleType, tmp_path: Path) -> None:
    first, second = (wheels.describe(wheels.build(steps, tmp_path / name)) for name in "ab")
    assert first == second
    assert first.modules == ["rush_steps"]


def test_a_wheel_that_pip_installs_is_what_is_built(steps: types.ModuleType, tmp_path: Path) -> None:
    built = wheels.build(steps, tmp_path)
    with zipfile.ZipFile(built) as archive:
        record = archive.read(next(name for name in archive.namelist() if name.endswith("RECORD"))).decode()
        assert {line.split(",")[0] for line in record.splitlines()} == set(archive.namelist())
    assert wheels.build(built, tmp_path / "copied").read_bytes() == built.read_bytes()


@pytest.mark.parametrize("name", ["os", "cellwork", "sklearn", "numpy"])
def test_a_wheel_hides_nothing_that_is_installed(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("x = 1")
    built = wheels.build(tmp_path / f"{name}.py", tmp_path / "out")
    with pytest.raises(BadInput, match="is the name of one that is installed"):
        wheels.describe(built)


def test_what_a_manifest_says_of_its_wheel_is_held_against_the_wheel(steps: types.ModuleType, tmp_path: Path) -> None:
    """A manifest that claims a module of the system for its own would make every function of it loadable."""
    folder = saved(custom(steps).fit(to_pandas(FRAME), LATE), tmp_path / "model", steps)
    manifest = package.read(folder)
    wheels.trust(folder, manifest.wheels, "eve")
    for changes in ({"modules": ["rush_steps", "os"]}, {"sha256": "0" * 64}, {"file": "../elsewhere.whl"}):
        lying = msgspec.structs.replace(manifest, wheels=[msgspec.structs.replace(manifest.wheels[0], **changes)])
        (folder / package.MANIFEST).write_bytes(msgspec.json.encode(lying))
        with pytest.raises(Refused, match="is not the one it was registered with"):
            package.load(folder)
    (folder / package.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    (folder / manifest.wheels[0].file).write_bytes(b"other")
    with pytest.raises((Refused, BadInput), match=r"is not the one|can't be read"):
        package.load(folder)


def test_compiled_parts_do_not_travel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "fast-1-py3-none-any.whl", "w") as archive:
        archive.writestr("fast/native.so", b"")
    with pytest.raises(BadInput, match="is not of pure Python alone"):
        wheels.describe(tmp_path / "fast-1-py3-none-any.whl")


def test_an_xgboost_and_a_lightgbm_pipeline_score_in_a_fresh_process_as_here(tmp_path: Path) -> None:
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    FRAME.write_parquet(tmp_path / "rows.parquet")
    for name, last in (
        ("xgboost", xgboost.XGBClassifier(n_estimators=10, n_jobs=1)),
        ("lightgbm", lightgbm.LGBMClassifier(n_estimators=10, n_jobs=1, verbose=-1, min_child_samples=2)),
    ):
        model = encoded(last).fit(to_pandas(FRAME), LATE)
        folder = saved(model, tmp_path / name)
        answer = fresh(folder, tmp_path / "rows.parquet")
        assert answer.returncode == 0, answer.stderr
        assert np.allclose(json.loads(answer.stdout)[name], model.predict_proba(to_pandas(FRAME))[:, 1], atol=1e-7)
        pins = (folder / "environment.lock").read_text()
        assert f"\n{'xgboost' if name == 'xgboost' else name}" in pins
        assert pl.Series(sandbox.score(folder, FRAME)).is_between(0, 1).all()
