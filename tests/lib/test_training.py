"""Searches on real Dask workers: leaderboard, progress, failing candidates, dying workers."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from cellwork import training
from cellwork.errors import BadInput, Unavailable
from cellwork.training.candidates import expand, leaderboard

RANDOM = np.random.default_rng(0)
X = pl.DataFrame(
    {
        "hour": RANDOM.integers(0, 24, 3000),
        "carrier": RANDOM.choice(["AA", "BB", "CC"], 3000).tolist(),
        "noise": RANDOM.normal(size=3000),
    }
)
Y = (RANDOM.random(3000) < X["hour"].to_numpy() / 24).astype(int)
PIPELINE = make_pipeline(
    make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["carrier"]), remainder="passthrough"
    ),
    HistGradientBoostingClassifier(max_iter=20),
)
DEPTH = "histgradientboostingclassifier__max_depth"
RATE = "histgradientboostingclassifier__learning_rate"
VALIDATION = (X[2000:], Y[2000:])


@pytest.fixture
def cluster(workers: training.Cluster) -> training.Cluster:
    return workers


class Slow(ClassifierMixin, BaseEstimator):
    """Takes `seconds` to fit, or until the file `until` is there, and fails on demand."""

    def __init__(self, seconds: float = 0.0, fails: bool = False, ends: bool = False, until: str = "") -> None:
        self.seconds, self.fails, self.ends, self.until = seconds, fails, ends, until

    def fit(self, X: Any, y: Any) -> Slow:
        time.sleep(self.seconds)
        while self.until and not Path(self.until).exists():
            time.sleep(0.05)
        if self.ends:
            os._exit(9)
        if self.fails:
            raise ValueError("no such kernel")
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X: Any) -> Any:
        rate = np.clip(np.asarray(X, dtype=float)[:, 0] / 24, 0, 1)
        return np.column_stack([1 - rate, rate])


def quiet(step: training.Step) -> None:
    """Say nothing."""


def test_the_best_candidate_comes_back_fitted_with_the_leaderboard(cluster: training.Cluster) -> None:
    from sklearn.metrics import roc_auc_score

    from cellwork.models.columns import to_pandas

    steps: list[training.Step] = []
    grid = {DEPTH: [1, 3], RATE: [0.001, 0.1]}
    found = training.search(
        PIPELINE, grid, X[:2000], Y[:2000], validation=VALIDATION, cluster=cluster, progress=steps.append
    )
    assert found.leaderboard.columns == ["rank", "roc_auc", "learning_rate", "max_depth", "seconds", "error"]
    assert found.leaderboard["roc_auc"].is_sorted(descending=True)
    assert found.leaderboard.height == 4
    assert found.score == pytest.approx(
        roc_auc_score(VALIDATION[1], found.model.predict_proba(to_pandas(VALIDATION[0]))[:, 1])
    )
    assert found.score == found.leaderboard["roc_auc"][0]
    assert [step.done for step in steps] == [1, 2, 3, 4]
    assert "candidate 4 of 4: roc_auc 0." in str(steps[-1])
    assert steps[-1].best is not None
    assert steps[-1].best.parameters == found.parameters
    assert not hasattr(PIPELINE, "classes_")


def test_folds_are_averaged_and_the_best_is_fitted_on_every_row(cluster: training.Cluster) -> None:
    from sklearn.model_selection import TimeSeriesSplit, cross_val_score

    from cellwork.models.columns import to_pandas

    found = training.search(PIPELINE, {DEPTH: [2]}, X, Y, folds=TimeSeriesSplit(3), cluster=cluster, progress=quiet)
    expected = cross_val_score(
        PIPELINE.set_params(**{DEPTH: 2}), to_pandas(X), Y, scoring="roc_auc", cv=TimeSeriesSplit(3)
    )
    PIPELINE.set_params(**{DEPTH: None})
    assert found.score == pytest.approx(expected.mean())
    assert found.model[-1].n_iter_ == 20


def test_a_metric_that_should_be_small_ranks_the_smallest_first(cluster: training.Cluster) -> None:
    found = training.search(
        PIPELINE, {RATE: [0.001, 0.1]}, X, Y, folds=2, metric="log_loss", cluster=cluster, progress=quiet
    )
    assert found.leaderboard["log_loss"].is_sorted()
    assert found.parameters == {RATE: 0.1}


def test_a_candidate_that_fails_stands_in_the_leaderboard_with_its_error(cluster: training.Cluster) -> None:
    numbers = X.select("hour")
    found = training.search(
        Slow(), {"fails": [True, False]}, numbers, Y, validation=(numbers, Y), cluster=cluster, progress=quiet
    )
    assert found.leaderboard["error"].to_list() == ["", "ValueError: no such kernel"]
    assert found.parameters == {"fails": False}
    with pytest.raises(BadInput, match=r"all 1.*no such kernel"):
        training.search(Slow(), {"fails": [True]}, numbers, Y, validation=(numbers, Y), cluster=cluster, progress=quiet)


def test_a_candidate_that_fails_on_each_fold_is_one_error_also_when_it_is_resumed(
    cluster: training.Cluster, tmp_path: Path
) -> None:
    terms: dict[str, Any] = {"folds": 3, "cluster": cluster, "progress": quiet, "resume": tmp_path / "journal"}
    for _ in range(2):
        found = training.search(Slow(), {"fails": [True, False]}, X.select("hour"), Y, **terms)
        assert found.leaderboard["error"].to_list() == ["", "ValueError: no such kernel"]
        assert found.parameters == {"fails": False}


def test_a_killed_worker_is_survived_and_a_cluster_losing_all_of_them_too() -> None:
    numbers = X.select("hour")
    killed: list[int] = []
    with training.cluster(workers=2) as opened:

        def kill(step: training.Step) -> None:
            if step.done < (1, 3, math.inf)[len(killed)]:  # two that end at once are told as one step
                return
            there = list(opened.client.run(os.getpid, on_error="ignore").values())
            for pid in there if killed else there[:1]:
                with contextlib.suppress(ProcessLookupError):  # it was killed before, and its nanny has not seen it yet
                    os.kill(pid, signal.SIGKILL)
            killed.append(len(there))

        grid = {"seconds": [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]}
        found = training.search(
            Slow(), grid, numbers, Y, validation=(numbers, Y), cluster=opened, progress=kill, timeout=240
        )
    assert len(killed) == 2
    assert found.leaderboard["roc_auc"].null_count() == 0
    assert found.leaderboard.height == 6


def test_an_open_cluster_leaves_dasks_configuration_to_the_others_of_the_process(cluster: training.Cluster) -> None:
    assert cluster.client.run_on_scheduler(allowed) == 0
    assert dask.config.get("distributed.scheduler.allowed-failures") == 3
    assert dask.config.get("distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_") is not None


def allowed(dask_scheduler: Any) -> int:
    return int(dask_scheduler.allowed_failures)


def test_a_candidate_that_ends_every_worker_is_an_error_of_that_candidate() -> None:
    numbers = X.select("hour")
    with training.cluster(workers=2) as opened:
        found = training.search(
            Slow(),
            {"ends": [True, False]},
            numbers,
            Y,
            validation=(numbers, Y),
            cluster=opened,
            progress=quiet,
            timeout=240,
        )
    assert found.leaderboard["error"].to_list() == ["", "ended its worker again and again (out of memory?)"]


def test_a_search_ends_at_its_timeout(cluster: training.Cluster, tmp_path: Path) -> None:
    """The fit ends when this test lets it, which is after the search."""
    numbers, go = X.select("hour"), tmp_path / "go"
    try:
        with pytest.raises(Unavailable, match="took longer than its timeout"):
            training.search(
                Slow(), {"until": [str(go)]}, numbers, Y, validation=(numbers, Y), cluster=cluster, progress=quiet, timeout=2
            )  # fmt: skip
    finally:
        go.touch()


def test_a_misspelt_parameter_is_told_before_anything_runs() -> None:
    with pytest.raises(BadInput, match=f"did you mean '{RATE}'"):
        training.fit(PIPELINE, X, Y, parameters={"histgradientboostingclassifier__learning_rat": 1})


def test_fit_on_a_worker_is_fit_here(cluster: training.Cluster) -> None:
    here, there = training.fit(PIPELINE, X, Y), training.fit(PIPELINE, X, Y, cluster=cluster)
    frame = X.head(50).to_pandas()
    assert here.predict_proba(frame).tolist() == there.predict_proba(frame).tolist()


def test_missing_labels_are_told_not_dropped() -> None:
    with pytest.raises(BadInput, match="2 of 3000"):
        training.fit(PIPELINE, X, pl.Series([None, None, *Y[2:].tolist()]))


def test_distributions_are_drawn_by_seed_and_grids_are_complete() -> None:
    from scipy.stats import uniform

    assert len(expand([{"a": [1, 2], "b": ["x", "y"]}, {"a": [3]}], 10, 0)) == 5
    drawn = [c.parameters for c in expand({"a": uniform(0, 1)}, 4, seed=7)]
    assert len(drawn) == 4
    assert drawn == [c.parameters for c in expand({"a": uniform(0, 1)}, 4, seed=7)]
    with pytest.raises(BadInput, match="candidates"):
        expand({}, 1, 0) and expand([], 1, 0)


def test_a_leaderboard_holds_any_kind_of_value() -> None:
    board = leaderboard(expand({"model": [None, "tree"], "depth": [1, 2]}, 1, 0), "roc_auc")
    assert board["model"].to_list() == [None, "tree", None, "tree"]
    assert board["depth"].to_list() == [1, 1, 2, 2]


def test_the_dashboard_goes_through_the_users_server_on_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellwork.training.cluster import dashboard_link

    assert dashboard_link().startswith("http://")
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert dashboard_link().format(port=8787, host="x", scheme="http") == "/user/ada/proxy/8787/status"


def test_a_scheduler_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.modules["cellwork.training.cluster"], "START_SECONDS", 1)
    with pytest.raises(Unavailable, match="gave no worker within 1 s"), training.cluster("tcp://127.0.0.1:9"):
        pass


def test_a_scheduler_that_wants_tls_gets_it_and_turns_others_away(tmp_path: Path) -> None:
    from distributed import LocalCluster
    from distributed.security import Security

    security = Security.temporary()
    for name, pem in (
        ("ca", security.tls_ca_file),
        ("cert", security.tls_client_cert),
        ("key", security.tls_client_key),
    ):
        (tmp_path / f"{name}.pem").write_text(pem)
    tls = training.Tls(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="tls://127.0.0.1", security=security, dashboard_address=None
        ) as local,
        training.cluster(local.scheduler_address, tls=tls) as opened,
    ):
        assert local.scheduler_address.startswith("tls://")
        assert opened.client.submit(sum, [1, 2]).result(60) == 3
    with (
        pytest.raises(BadInput, match="is not there"),
        training.cluster("tls://127.0.0.1:1", tls=training.Tls(tmp_path / "no", tls.certificate, tls.key)),
    ):
        pass
