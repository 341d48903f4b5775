"""Scores in a child process: equal to those here, and a bad model is an error with a verdict, never a hang or a leak."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
from running import wait_for

from cellwork.errors import BadInput, Refused
from cellwork.models import columns, package, registry, sandbox

FRAME = pl.DataFrame({"hour": np.arange(60.0), "carrier": ["AA", "BB", None] * 20})


def saved(model: Any, folder: Path, frame: pl.DataFrame = FRAME) -> Path:
    kind: Any = "classifier" if hasattr(model, "predict_proba") else "regressor"
    manifest = package.Manifest(kind=kind, columns=columns.kinds(frame), example=frame.head(2).to_dicts())
    registry.save(model, manifest, folder)
    return folder


def classifier() -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.tree import DecisionTreeClassifier

    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["carrier"]), remainder="passthrough")
    return make_pipeline(encode, DecisionTreeClassifier(max_depth=3)).fit(
        columns.to_pandas(FRAME), np.arange(60) % 7 > 3
    )


def linear(**changes: Any) -> Any:
    """A regressor of `hour`; `changes` poison it."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(columns.to_pandas(FRAME.select("hour")), np.arange(60.0))
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def test_a_child_scores_as_this_process_does(tmp_path: Path) -> None:
    model = classifier()
    found = sandbox.score(saved(model, tmp_path / "model"), FRAME.with_columns(extra=pl.lit(1)))
    assert found.tolist() == model.predict_proba(columns.to_pandas(FRAME))[:, 1].tolist()


def poisons() -> dict[str, tuple[Callable[[], Any], str]]:
    return {
        "not_finite": (lambda: linear(coef_=np.array([np.nan])), "gave 60 scores that are not finite"),
        "two_a_row": (lambda: linear(coef_=np.ones((2, 1)), intercept_=np.zeros(2)), "gave 120 scores for 60 rows"),
        "wrong_width": (lambda: linear(coef_=np.ones(3), n_features_in_=1), "ended with exit code 1: ValueError"),
    }


@pytest.mark.parametrize("name", list(poisons()))
def test_a_poisoned_model_gets_a_verdict(name: str, tmp_path: Path) -> None:
    make, verdict = poisons()[name]
    folder = saved(linear(), tmp_path / "model", FRAME.select("hour"))
    _replace(folder, make())
    with pytest.raises(BadInput, match=verdict):
        sandbox.score(folder, FRAME)


def _replace(folder: Path, model: Any) -> None:
    """Put a model into the folder that `registry.save` would not take, as someone with access to the artifacts could."""
    import skops.io

    (folder / package.MODEL).write_bytes(skops.io.dumps(model))


def test_a_model_that_eats_memory_is_stopped_at_its_limit(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    wide = pl.DataFrame({f"x{k}": np.arange(3.0) for k in range(40)})
    model = make_pipeline(PolynomialFeatures(1), LinearRegression()).fit(columns.to_pandas(wide), np.arange(3.0))
    folder = saved(model, tmp_path / "model", wide)
    model[0].set_params(degree=5)
    model[0].fit(columns.to_pandas(wide))
    _replace(folder, model)
    rows = pl.concat([wide] * 200)
    with pytest.raises(BadInput, match="needs more than 1500 MB of memory"):
        sandbox.score(folder, rows, memory_mb=1500)


def test_a_type_that_may_not_be_loaded_is_refused_in_the_child(tmp_path: Path) -> None:
    import shutil

    from sklearn.preprocessing import FunctionTransformer

    folder = saved(linear(), tmp_path / "model", FRAME.select("hour"))
    _replace(folder, FunctionTransformer(shutil.rmtree))
    with pytest.raises(Refused, match="rmtree"):
        sandbox.score(folder, FRAME)


@pytest.mark.parametrize(
    "module", ["cellwork.models.child", "cellwork.serving.child", "cellwork.models.compiled.child"]
)
def test_a_model_reads_no_file_that_a_row_names(module: str, tmp_path: Path) -> None:
    """scikit-learn's own class opens what it is told; a file's words would come out as scores."""
    from cellwork.models.compiled import child
    from cellwork.serving.model import load

    secret = tmp_path / "token"
    secret.write_text("label=1")
    secret.chmod(0o600)
    frame = pl.DataFrame({"where": [str(secret)] * 2})
    folder = saved(_reader(columns.to_pandas(frame)), tmp_path / "model", frame)
    if module == "cellwork.models.child":
        with pytest.raises(BadInput, match="a model opens no files but its own"):
            sandbox.score(folder, frame)
        return
    scoring = {
        "cellwork.serving.child": lambda: load(folder).scores({"where": [str(secret)]}),
        "cellwork.models.compiled.child": lambda: child.main(folder),
    }
    assert "PermissionError" in _in_a_fork(scoring[module])


def _reader(frame: Any) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    words = CountVectorizer(input="filename", analyzer="char", ngram_range=(7, 7), vocabulary=["label=1"])
    return make_pipeline(make_column_transformer((words, "where")), LinearRegression()).fit(frame, [0.0, 1.0])


def _in_a_fork(doing: Callable[[], object]) -> str:
    """Return what `doing` raises in a process of its own, which it may confine."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            doing()
            said = "nothing"
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        return file.read()


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A model folder with a pipe in the model's place: whoever opens it waits until somebody writes."""
    folder = saved(linear(), tmp_path / "model", FRAME.select("hour"))
    (folder / package.MODEL).unlink()
    os.mkfifo(folder / package.MODEL)
    return folder


def test_a_hanging_model_is_killed_in_time(hanging: Path) -> None:
    """Nobody else would ever have ended it."""
    with pytest.raises(BadInput, match="did not answer within 3 s"):
        sandbox.score(hanging, FRAME, timeout=3)
    assert _children(hanging) == []


def test_a_child_sees_no_secret_and_no_open_file(
    hanging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLWORK_TOKEN", "a-secret-of-the-parent")
    verdicts: list[str] = []
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        thread = threading.Thread(target=lambda: verdicts.append(_verdict(hanging)))
        thread.start()
        try:
            [child] = wait_for(lambda: _children(hanging), 120, "the child")
            assert not {name for name in child.environ() if "CELLWORK" in name or "TOKEN" in name}
            assert str(tmp_path / "held") not in [file.path for file in child.open_files()]
            assert child.cmdline()[1] == "-I"
        finally:
            (hanging / package.MODEL).open("wb").close()  # it has waited for that, finds no model, and ends
            thread.join(120)
    assert "can't be loaded" in verdicts[0]


def _verdict(folder: Path) -> str:
    try:
        sandbox.score(folder, FRAME)
    except BadInput as error:
        return error.verdict
    return "scored"


def _children(folder: Path) -> list[psutil.Process]:
    """Return the children of this process that were told of `folder`; others come and go meanwhile."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            found += [process] if str(folder) in process.cmdline() else []
    return found


def test_a_frame_without_a_column_is_told_before_a_process_starts(tmp_path: Path) -> None:
    folder = saved(linear(), tmp_path / "model", FRAME.select("hour"))
    with pytest.raises(BadInput, match="'hour': is not in the frame to score"):
        sandbox.score(folder, FRAME.drop("hour"))
