"""A compiled model gives scikit-learn's scores, or is refused: every pipeline here is computed both ways, in C and in NumPy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge, SGDClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from cellwork.errors import BadInput
from cellwork.models import columns, package, registry
from cellwork.models.compiled import NotCompiled, ensure, native
from cellwork.models.compiled import program as programs
from cellwork.models.compiled.extract import extract
from cellwork.models.compiled.machine import Machine
from cellwork.models.compiled.program import Trees
from cellwork.models.compiled.transformers import NotCompilable
from cellwork.training import catalogue

DICE = np.random.default_rng(7)
ROWS = 400
FRAME = pd.DataFrame(
    {
        "a": DICE.normal(size=ROWS), "b": DICE.normal(size=ROWS) * 100, "c": DICE.integers(0, 5, ROWS).astype(float),
        "city": DICE.choice(["Rome", "Oslo", "Lima", "Bern"], ROWS), "kind": DICE.choice(["x", "y"], ROWS),
    }
)  # fmt: skip
LABELS = ((FRAME["a"] + FRAME["c"] + DICE.normal(size=ROWS)) > 2).astype(int)
AMOUNTS = np.abs(FRAME["a"] * 3 + FRAME["c"] + DICE.normal(size=ROWS))
GAPS = FRAME.mask(DICE.random(FRAME.shape) < 0.1)
EMPTY = GAPS.assign(empty=np.nan)
NUMBERS, TEXTS = ["a", "b", "c"], ["city", "kind"]


def ordinal(**parameters: Any) -> OrdinalEncoder:
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, **parameters)


def rich(estimator: Any) -> Any:
    """Numbers imputed, scaled and marked; text imputed and one-hot: what a textbook does."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    return make_pipeline(make_column_transformer((numbers, NUMBERS), (texts, TEXTS)), estimator)


def coded(estimator: Any) -> Any:
    """The demo's form: text as ordinals with a code for missing, the rest passed through."""
    return make_pipeline(
        make_column_transformer((ordinal(encoded_missing_value=-1), TEXTS), remainder="passthrough"), estimator
    )


PIPELINES: dict[str, tuple[Any, pd.DataFrame, Any]] = {
    "linear": (LinearRegression(), FRAME[NUMBERS], AMOUNTS),
    "ridge on ranges": (make_pipeline(MinMaxScaler(clip=True), Ridge()), FRAME[NUMBERS], AMOUNTS),
    "poisson": (make_pipeline(RobustScaler(), PoissonRegressor()), FRAME[NUMBERS], AMOUNTS),
    "logistic, rich": (rich(LogisticRegression()), GAPS, LABELS),
    "logistic, dropped": (
        make_pipeline(make_column_transformer((OneHotEncoder(drop="first"), TEXTS), (StandardScaler(), NUMBERS)), LogisticRegression()), FRAME, LABELS,
    ),
    "sgd": (make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)), FRAME[NUMBERS], LABELS),
    "union": (
        make_pipeline(make_union(StandardScaler(), make_pipeline(SimpleImputer(), MinMaxScaler())), LogisticRegression()), FRAME[NUMBERS], LABELS,
    ),
    "categories of numbers": (
        make_pipeline(ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["c"]), ("rest", "passthrough", [0, 1])]), LogisticRegression()), FRAME[NUMBERS], LABELS,
    ),
    "tree": (DecisionTreeClassifier(max_depth=6, random_state=0), FRAME[NUMBERS], LABELS),
    "tree regressor": (DecisionTreeRegressor(random_state=0), GAPS[NUMBERS], AMOUNTS),
    "a tree that is a leaf": (DecisionTreeRegressor(max_depth=1, min_samples_leaf=300), FRAME[NUMBERS], AMOUNTS),
    "forest": (RandomForestClassifier(30, random_state=0), GAPS[NUMBERS], LABELS),
    "forest regressor": (RandomForestRegressor(11, random_state=0), FRAME[NUMBERS], AMOUNTS),
    "extra trees, rich": (rich(ExtraTreesClassifier(20, random_state=0)), GAPS, LABELS),
    "boosting": (make_pipeline(SimpleImputer(), GradientBoostingClassifier(random_state=0)), GAPS[NUMBERS], LABELS),
    "boosting, exponential": (GradientBoostingClassifier(loss="exponential", n_estimators=20), FRAME[NUMBERS], LABELS),
    "boosting regressor": (GradientBoostingRegressor(n_estimators=33, random_state=0), FRAME[NUMBERS], AMOUNTS),
    "histograms": (coded(HistGradientBoostingClassifier(random_state=0)), GAPS, LABELS),
    "of the catalogue, with an empty column": (
        catalogue.pipeline("hist_gradient_boosting", EMPTY, LABELS, select=0.8), EMPTY, LABELS,
    ),
    "histograms, poisson": (HistGradientBoostingRegressor(loss="poisson", max_iter=20), GAPS[NUMBERS], AMOUNTS),
}  # fmt: skip


def fitted(name: str) -> tuple[Any, pd.DataFrame]:
    model, frame, labels = PIPELINES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = columns.to_pandas(frame)
        return model.fit(frame, labels), frame


def rows_of(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return the rows as a request brings them: None where there is no value."""
    return [tuple(None if v != v else v for v in row) for row in frame.itertuples(index=False)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize("name", PIPELINES)
def test_a_compiled_pipeline_gives_scikit_learns_scores(name: str, built: Path) -> None:
    model, frame = fitted(name)
    program = programs.decode(programs.encode(extract(model, columns.kinds(frame))))
    expected = package.scores(model, frame)
    for folder in (built, None):
        machine = Machine(program, folder)
        together = machine.scores(rows_of(frame))
        np.testing.assert_allclose(together, expected, rtol=1e-12, atol=1e-12, err_msg=machine.how)
        single = [machine.scores([row])[0] for row in rows_of(frame)[:40]]
        np.testing.assert_allclose(single, together[:40], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["tree regressor", "forest regressor", "boosting regressor"])
def test_trees_are_exact_to_the_last_bit(name: str, built: Path) -> None:
    model, frame = fitted(name)
    if native.library(built) is None:
        pytest.fail("there is no C compiler here")
    program = extract(model, columns.kinds(frame))
    for folder in (built, None):
        assert Machine(program, folder).scores(rows_of(frame)).tolist() == package.scores(model, frame).tolist()


BOOSTED = extract(fitted("boosting")[0], columns.kinds(FRAME[NUMBERS]))
NUMBER = st.one_of(st.none(), st.floats(-1e30, 1e30), st.sampled_from([0.0, -0.0, 1e-320, 2.5, 3.0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=9))
def test_any_numbers_get_the_same_score_in_c_and_in_scikit_learn(
    built: Path, rows: list[tuple[float | None, ...]]
) -> None:
    frame = columns.to_pandas(
        {name: [row[k] for row in rows] for k, name in enumerate(NUMBERS)}, columns.kinds(FRAME[NUMBERS])
    )
    np.testing.assert_allclose(
        Machine(BOOSTED, built).scores(rows), package.scores(PIPELINES["boosting"][0], frame), rtol=1e-13
    )


def test_an_unknown_category_or_a_missing_number_is_refused_where_scikit_learn_refuses_it() -> None:
    model, frame = fitted("logistic, dropped")
    machine = Machine(extract(model, columns.kinds(frame)))
    with pytest.raises(BadInput, match=r"value of 'city' 'Rom': was not seen"):
        machine.scores([(1.0, 1.0, 1.0, "Rom", "x")])
    with pytest.raises(BadInput, match="send every feature"):
        machine.scores([(None, 1.0, 1.0, "Rome", "x")])


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (make_pipeline(PCA(2), LogisticRegression()), "PCA"),
        (make_pipeline(StandardScaler(), RandomForestClassifier(3)), "3 classes"),
        (LinearRegression(), "text reaches"),
    ],
)
def test_what_can_not_be_said_as_a_program_is_named(model: Any, part: str) -> None:
    labels = FRAME["c"].clip(upper=2).astype(int) if "3" in part else LABELS
    model.fit(FRAME[NUMBERS], labels)
    with pytest.raises(NotCompilable, match=part):
        extract(model, columns.kinds(FRAME[["city", "b", "c"]] if "text" in part else FRAME[NUMBERS]))


def spoiled(change: dict[str, bytes]) -> bytes:
    assert isinstance(BOOSTED.model, Trees)
    return programs.encode(
        msgspec.structs.replace(BOOSTED, model=msgspec.structs.replace(BOOSTED.model, **change))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("field", ["feature", "left", "roots"])
@pytest.mark.parametrize("value", [-1, 10**6, 2**30 - 1])
def test_a_program_with_an_index_outside_its_arrays_is_refused(field: str, value: int) -> None:
    assert isinstance(BOOSTED.model, Trees)
    numbers = np.frombuffer(getattr(BOOSTED.model, field), "<i4").copy()
    numbers[0] = value
    with pytest.raises(BadInput, match="not sound"):
        programs.decode(spoiled({field: numbers.tobytes()}))
    with pytest.raises(BadInput, match="not sound"):
        programs.decode(spoiled({field: getattr(BOOSTED.model, field)[:-1] if field != "roots" else b""}))


def save(model: Any, frame: pd.DataFrame, folder: Path) -> Path:
    kind: Any = "classifier" if hasattr(model, "predict_proba") else "regressor"
    example = [{k: None if v != v else v for k, v in row.items()} for row in frame.head(5).to_dict("records")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry.save(model, package.Manifest(kind=kind, columns=columns.kinds(frame), example=example), folder)
    return folder


def test_a_registered_model_is_read_in_a_child_compared_and_kept_by_its_digest(tmp_path: Path, built: Path) -> None:
    model, frame = fitted("histograms")
    folder = save(model, frame, tmp_path / "model")
    digest = package.digest(folder)
    assert ensure(folder, digest, built).how.startswith("HistGradientBoostingClassifier, compiled")
    (folder / "model.skops").unlink()
    kept = ensure(folder, digest, built)  # from now on nothing of scikit-learn's is needed
    np.testing.assert_allclose(kept.scores(rows_of(frame)), package.scores(model, frame), rtol=1e-12)


def test_a_model_that_can_not_be_compiled_says_why(tmp_path: Path) -> None:
    model = make_pipeline(PCA(2), LogisticRegression()).fit(FRAME[NUMBERS], LABELS)
    with pytest.raises(NotCompiled, match="PCA is not one of"):
        ensure(save(model, FRAME[NUMBERS], tmp_path / "model"), "0" * 64, tmp_path / "compiled")
