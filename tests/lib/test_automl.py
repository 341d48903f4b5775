"""The best model in a budget: what is tried, what is chosen, and what is said of it."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from cellwork import training
from cellwork.errors import BadInput, Unavailable
from cellwork.models.package import untrusted
from cellwork.training import blend
from cellwork.training import ending as endings
from cellwork.training.automl import FINALISTS, Automl, account, clearly_better, comparable, holds
from cellwork.training.candidates import Candidate, best_of, leaderboard
from cellwork.training.ending import Ending
from cellwork.training.search import Search
from cellwork.training.tasks import Data

SOME = ["constant", "logistic", "decision_tree", "lightgbm"]


def quiet(step: training.Step) -> None:
    """Say nothing."""


def test_defaults_come_first_then_the_better_models_get_more_settings_and_the_account_says_it_all(
    workers: training.Cluster,
) -> None:
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    steps: list[training.Step] = []
    stop = threading.Event()

    def after_seven(step: training.Step) -> None:
        """Of every model one: a worker that is slow to begin may still be at its first when the other has done seven."""
        steps.append(step)
        if step.done >= 7 and {each.last.model for each in steps} == set(SOME):
            stop.set()

    found = training.best(X, y, budget=250, models=SOME, cluster=workers, progress=after_seven, stop=stop)
    assert found.ended == "cancelled"
    assert found.leaderboard.height >= 7
    assert {*found.leaderboard["model"]} == set(SOME)
    assert found.score > 0.98
    assert found.model.predict_proba(X).shape == (569, 2)
    assert found.leaderboard.filter(model="constant")["roc_auc"].item() == 0.5
    assert found.account.startswith(
        f"{found.leaderboard.height} candidates of 4 models were tried on 569 rows with 5 folds"
    )
    assert all(f"- {name}: " in found.account for name in SOME)
    assert steps[-1].left is not None


def test_amounts_are_regressed_and_texts_and_gaps_are_no_hindrance(workers: training.Cluster) -> None:
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    frame = pl.DataFrame(X).with_columns(
        sex=pl.when(pl.col("sex") > 0).then(pl.lit("f")).otherwise(None),
        bmi=pl.when(pl.col("age") > 0.1).then(None).otherwise(pl.col("bmi")),
    )
    stop = threading.Event()
    found = training.best(
        frame,
        y.to_numpy(),
        budget=250,
        models=["ridge", "constant"],
        cluster=workers,
        progress=lambda step: step.done == 4 and stop.set(),
        stop=stop,
    )
    assert found.metric == "rmse"
    assert found.leaderboard["model"][0] == "ridge"


def test_a_budget_too_small_for_one_model_is_told(workers: training.Cluster) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(Unavailable, match="budget was spent before a candidate was done; give it more time"):
        training.best(X, y, budget=0.01, cluster=workers, progress=quiet)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ["ridge"]}, "is no classifier"),
        ({"models": ["logistik"]}, "did you mean 'logistic'"),
        ({"metric": "mae"}, "does not suit"),
        ({"y": [1] * 100}, "nothing to learn"),
        ({"folds": 200}, "do not suit the 100 rows"),
    ],
)
def test_what_makes_no_sense_is_told_before_a_cluster_is_opened(change: dict[str, Any], words: str) -> None:
    terms = {"X": np.arange(200.0).reshape(100, 2), "y": [0, 1] * 50, "budget": 1, **change}
    with pytest.raises(BadInput, match=words):
        training.best(**terms)


# The strategy, without workers


def told(strategy: Automl, scores: dict[str, list[float]], seconds: dict[str, float] | None = None) -> Candidate:
    candidate = strategy.ask()
    assert candidate is not None
    values = scores.get(candidate.model, [])
    candidate.seconds = (seconds or {}).get(candidate.model, 1.0)
    candidate.scores, candidate.error = dict(enumerate(values)), "" if values else "failed"
    strategy.tell(candidate)
    return candidate


def test_the_best_model_gets_the_most_new_settings_and_one_that_fails_none() -> None:
    plan = Automl(["ridge", "lasso", "linear_svm", "linear"], "regressor", "rmse", 0, {})
    scores = {"ridge": [1.0], "lasso": [2.0], "linear": [0.5]}
    first = [told(plan, scores).model for _ in range(4)]
    assert first == ["ridge", "lasso", "linear_svm", "linear"]
    after = [told(plan, scores) for _ in range(24)]
    tries = [sum(c.model == name for c in after) for name in ("ridge", "lasso", "linear_svm", "linear")]
    assert sum(tries) == 24
    assert tries[0] == pytest.approx(16, abs=1)
    assert tries[2:] == [0, 0]
    assert all(c.parameters["alpha"] > 0 for c in after)


def test_a_slow_model_gets_its_part_of_the_time_and_not_of_the_settings() -> None:
    plan = Automl(["ridge", "lasso"], "regressor", "rmse", 0, {})
    scores, seconds = {"ridge": [1.0], "lasso": [2.0]}, {"ridge": 1.0, "lasso": 40.0}
    for _ in range(2):
        told(plan, scores, seconds)
    after = [told(plan, scores, seconds).model for _ in range(100)]
    # the default of the slow one took 40 s, and it has half as much time as the better one
    assert after[:79] == ["ridge"] * 79
    assert after.count("lasso") == 1
    waiting = plan.ask()
    assert waiting is not None
    assert waiting.model == "ridge"


def test_luck_is_not_preferred_to_the_best_default() -> None:
    plan = Automl(["ridge", "lasso"], "regressor", "rmse", 0, {})
    default, worse = told(plan, {"ridge": [1.0, 1.2, 0.9]}), told(plan, {"lasso": [2.0, 2.0, 2.0]})
    lucky = Candidate({"alpha": 3.0}, "ridge", scores={0: 0.9, 1: 1.3, 2: 0.88})
    better = Candidate({"alpha": 2.0}, "ridge", scores={0: 0.9, 1: 1.1, 2: 0.81})
    assert plan.choose([default, worse, lucky]) is default
    assert plan.choose([default, worse, lucky, better]) is better
    assert not clearly_better(default, default, "rmse")
    assert math.isnan(Candidate({}).score)


# One measurement


def validated(rows: int = 2000) -> tuple[Data, list[np.ndarray]]:
    """Return amounts with rows of validation, and the labels of those."""
    y = np.random.default_rng(5).normal(0, 3, 2 * rows)
    X = np.arange(2.0 * rows).reshape(-1, 1)
    return Data.of(X[:rows], y[:rows], (X[rows:], y[rows:]), 5), [y[rows:]]


def near(like: Candidate, truth: np.ndarray, noise: int, *, by: float = 1.0, **parameters: Any) -> Candidate:
    """Return a candidate that errs as another does but for a twentieth of it, `by` times as much."""
    own = np.random.default_rng(noise).normal(size=len(truth))
    wrong = by * (math.sqrt(1 - 0.05**2) * (like.answers[0] - truth) + 0.05 * own)
    scores = {0: float(np.sqrt(np.mean(wrong**2)))}
    return Candidate(parameters, like.model, scores=scores, answers={0: truth + wrong})


def found(winner: Candidate, tried: list[Candidate]) -> Search:
    return Search(None, winner.parameters, "rmse", winner.score, leaderboard(tried, "rmse"), 1.0, candidates=tried)


def test_on_one_measurement_too_luck_is_not_preferred_to_the_best_default_and_the_account_says_what_was_looked_at() -> (
    None
):
    data, truths = validated()
    plan = Automl(["ridge", "lasso"], "regressor", "rmse", 0, {})
    default = answering("ridge", truths, 1)
    lucky = min((near(default, truths[0], k, alpha=float(k)) for k in range(8)), key=lambda each: each.score)
    assert lucky.score < default.score
    tried = [default, lucky]
    assert plan.choose(tried, tried, data) is default
    assert plan.choose(tried, [], data) is default
    said = account(found(default, tried), data, "rmse", 9)
    assert "not clearly better over blocks of the rows they were measured on, so the default is taken" in said
    better = near(default, truths[0], 1, by=0.95, alpha=0.5)
    tried = [default, lucky, better]
    assert plan.choose(tried, tried, data) is better
    said = account(found(better, tried), data, "rmse", 9)
    assert "the difference holds over blocks of the rows they were measured on" in said
    assert "over the folds" not in said


def test_a_blend_has_to_be_clearly_better_on_one_measurement_too() -> None:
    """A pinch of what errs otherwise is better on the rows that it was chosen by, and hardly by more than luck."""
    data, truths = validated(200)
    plan = Automl(["ridge", "lasso"], "regressor", "rmse", 0, {})
    good, other = answering("ridge", truths, 1), answering("lasso", truths, 2)
    chosen = plan.choose([good, other], [good, other], data)
    assert chosen is not None
    assert chosen.model == "blend"
    other.answers = {0: truths[0] + 2.6 * (other.answers[0] - truths[0])}
    other.scores = {0: 2.6 * other.score}
    mixed = blend.greedy([good, other], truths, "rmse", classes=np.empty(0))
    assert mixed is not None
    assert mixed.score < good.score
    assert plan.choose([good, other], [good, other], data) is good


def test_of_results_of_an_earlier_search_the_better_one_is_taken_and_the_account_says_that_it_may_be_luck() -> None:
    data, truths = validated()
    plan = Automl(["ridge"], "regressor", "rmse", 0, {})
    default, other = answering("ridge", truths, 1), answering("ridge", truths, 10, alpha=1.0)
    other.scores, other.answers = {0: 0.999 * default.score}, {}
    assert plan.choose([default, other], [default, other], data) is other
    assert "whether that is luck is not known" in account(found(other, [default, other]), data, "rmse", 9)


@pytest.mark.parametrize(
    ("metric", "classes", "pairs"),
    [("roc_auc", 2, 40), ("log_loss", 2, 40), ("accuracy", 2, 40), ("roc_auc", 3, 4), ("log_loss", 3, 20)],
)
def test_models_that_are_alike_are_hardly_ever_told_apart_and_a_better_one_is(
    metric: str, classes: int, pairs: int
) -> None:
    """Rows come sorted by their class, and one class is rare."""
    random = np.random.default_rng(3)
    truth = np.sort(random.choice(classes, 1500, p=[0.1, 0.9] if classes == 2 else [0.1, 0.5, 0.4]))

    def saying(noise: float) -> Candidate:
        odds = np.exp(np.eye(classes)[truth] + random.normal(0, noise, (1500, classes)))
        rates = odds / odds.sum(axis=1, keepdims=True)
        return Candidate({}, answers={0: rates if classes > 2 else rates[:, 1]})

    alike = sum(holds(saying(1.0), saying(1.0), metric, truth, np.arange(classes)) for _ in range(pairs))
    assert alike <= pairs / 10
    assert all(holds(saying(0.6), saying(1.2), metric, truth, np.arange(classes)) for _ in range(3))
    one = truth == 0
    few = np.r_[np.flatnonzero(one)[:1], np.flatnonzero(~one)]
    short = [Candidate({}, answers={0: saying(noise).answers[0][few]}) for noise in (0.1, 2.0)]
    assert holds(*short, metric, truth[few], np.arange(classes)) == (metric == "accuracy" or (metric, classes) == ("log_loss", 3))  # fmt: skip


def test_the_rows_of_validation_are_what_a_setting_has_to_prove_itself_on(workers: training.Cluster) -> None:
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    stop = threading.Event()
    best = training.best(
        X[:350], y[:350], validation=(X[350:], y[350:]), budget=250, models=["logistic", "decision_tree"], cluster=workers,
        progress=lambda step: step.done >= 8 and stop.set(), stop=stop,
    )  # fmt: skip
    single = [each for each in best.candidates if not each.members]
    top, default = best_of(single, "roc_auc"), best_of([each for each in single if not each.parameters], "roc_auc")
    assert top is not None
    assert default is not None
    assert comparable(top, default), "their answers were kept"
    assert "with 219 rows of validation" in best.account
    assert "folds" not in best.account


# Blends, and the end of a budget


def answering(name: str, truths: list[np.ndarray], noise: int, *, bend: float = 0.0, **parameters: Any) -> Candidate:
    """Return a candidate that answers folds with their labels and noise of its own."""
    random = np.random.default_rng(noise)
    said = {k: truth + random.normal(bend, 1.0, len(truth)) for k, truth in enumerate(truths)}
    scores = {k: float(np.sqrt(np.mean((said[k] - truth) ** 2))) for k, truth in enumerate(truths)}
    return Candidate(parameters, name, scores=scores, answers=said)


def test_models_that_err_differently_are_better_together_and_copies_of_one_are_not() -> None:
    truths = [np.random.default_rng(k).normal(0, 3, 500) for k in range(3)]
    none = np.empty(0)
    ridge, lasso, poor = (
        answering("ridge", truths, 1), answering("lasso", truths, 2), answering("linear", truths, 3, bend=9.0),
    )  # fmt: skip
    found = blend.greedy([ridge, lasso, poor], truths, "rmse", classes=none)
    assert found is not None
    assert {member.model for member, _ in found.members} == {"ridge", "lasso"}
    assert sum(weight for _, weight in found.members) == pytest.approx(1.0)
    assert found.score == pytest.approx(1 / math.sqrt(2), rel=0.1)
    assert found.parameters["of"].count(" + ") == 1
    assert blend.greedy([ridge, poor], truths, "rmse", classes=none) is None
    assert blend.greedy([], truths, "rmse", classes=none) is None
    del lasso.answers[1]
    assert blend.greedy([ridge, lasso], truths, "rmse", classes=none) is None, "it did not answer each fold"


@pytest.mark.parametrize("classes", [2, 3])
def test_a_blend_answers_with_the_weighted_mean_survives_being_kept_and_can_be_trained_again(classes: int) -> None:
    import skops.io
    from sklearn.base import clone

    random = np.random.default_rng(0)
    X = pl.DataFrame({"a": random.normal(size=300), "c": random.choice(["x", "y"], 300)})
    y = np.digitize(X["a"].to_numpy(), [-0.5, 0.5][: classes - 1]) + 4
    rows = training.rows.features(X)
    parts = [
        (name, training.catalogue.pipeline(name, X, y).fit(rows, y), w)
        for name, w in (("logistic", 0.75), ("decision_tree", 0.25))
    ]
    whole = blend.assemble(parts, y)
    expected = sum(w * model.predict_proba(rows) for _, model, w in parts)
    assert np.allclose(whole.predict_proba(rows), expected)
    assert (whole.predict(rows) == whole.classes_[expected.argmax(axis=1)]).all()
    assert set(whole.predict(rows)) <= set(y)
    data = skops.io.dumps(whole)
    again = skops.io.loads(data, trusted=untrusted(data))
    assert np.allclose(again.predict_proba(rows), expected)
    assert clone(whole).fit(rows, y).predict_proba(rows).shape == (300, classes)


def test_a_blend_is_the_answer_where_it_is_clearly_better_and_finalists_are_not_all_of_one_model() -> None:
    X, y = np.arange(1500.0).reshape(-1, 1), np.random.default_rng(5).normal(0, 3, 1500)
    data = Data.of(X, y, None, 3)
    truths = [data.measuring(fold, 1.0)[1] for fold in range(3)]
    plan = Automl(["ridge", "lasso"], "regressor", "rmse", 0, {})
    complete = [answering("ridge", truths, 1), answering("lasso", truths, 2)]
    complete += [answering("lasso", truths, 10 + k, alpha=float(k)) for k in range(6)]
    finalists = plan.finalists(complete)
    assert len(finalists) <= FINALISTS
    assert [c.model for c in finalists].count("lasso") <= 3, "two, and the default"
    assert complete[0] in finalists
    found = plan.choose(complete, complete, data)
    assert found is not None
    assert found.model == "blend"
    assert not plan.choose(complete, [], data).members, "nothing is fitted on all rows: one model"


def test_what_may_be_the_answer_is_fitted_on_all_rows_before_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four seconds are left, and a fit takes one: it is time. A newcomer that would take longer than what is left is not begun."""
    monkeypatch.setattr(endings, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    quick = Candidate({}, "ridge", scores={0: 1.0, 1: 1.0}, seconds=1.0)
    slow = Candidate({}, "lasso", scores={0: 0.9, 1: 0.9}, seconds=60.0)
    begun: list[Candidate] = []

    def ending(left: float, among: list[Candidate]) -> Ending:
        def submit(candidate: Candidate) -> str:
            begun.append(candidate)
            return f"fit {len(begun)}"

        return Ending(
            100.0, 900.0 + left, grows=2.0, folds=2, slots=2, last=1.0, finalists=lambda _: among, submit=submit
        )  # fmt: skip

    assert ending(50, [quick]).more([quick]) == set()
    end = ending(3, [quick])
    assert end.more([quick]) == {"fit 1"}
    assert "fit 1" in end
    assert not end.is_due([quick])
    assert end.more([quick]) == set(), "once is enough"
    end.take("fit 1", ("model", 1.0))
    assert end.models == {id(quick): "model"}
    late = ending(3, [slow, quick])
    assert late.more([slow, quick]) == {"fit 2"}
    assert begun == [quick, quick]
    assert ending(10, [slow]).is_due([slow]), "nothing is ready: what is left is for the last fit"
    assert not ending(100, [slow]).is_due([slow])


def test_a_budget_is_used_to_its_end_and_the_model_is_there(workers: training.Cluster) -> None:
    """On a crowded machine the first budget may not suffice for one candidate; that is told, and a longer one does."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    names = ["logistic", "decision_tree", "random_forest"]
    for budget in (8, 30, 120):
        try:
            found = training.best(X, y, budget=budget, models=names, cluster=workers, progress=quiet)
        except Unavailable:
            continue
        if found.leaderboard.height > 3:
            break
    assert found.ended == "budget"
    assert found.leaderboard.height > 3
    assert found.model.predict_proba(X).shape == (569, 2)
    winner = next(c for c in found.candidates if c.parameters == found.parameters and c.score == found.score)
    assert f"The best is {winner}" in found.account
