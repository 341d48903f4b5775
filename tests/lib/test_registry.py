"""Registering with a real MLflow server, and reading versions back without MLflow."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow_server
import numpy as np
import polars as pl
import pytest

from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused, Unavailable
from cellwork.models import package, registry, tracking, versions
from cellwork.models.columns import to_pandas
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Metric, VersionRef
from cellwork.wire.origin import Origin

FRAME = pl.DataFrame(
    {"hour": np.arange(80) % 24, "weather__temp": np.linspace(20, 90, 80), "carrier": ["AA", None] * 40}
)
LATE = (np.arange(80) % 24 > 12).astype(int)
NOW = datetime(2013, 9, 1, tzinfo=UTC)
DATASET = Dataset(
    id="ds_" + "7" * 26, project="trains", name="training", rows=80, observations="departures", id_column="id", time_column="at",
    inputs=["hour", "carrier"], features=["weather__temp"], label="late", labelled=80, start=NOW, end=NOW, content_sha256="c" * 64,
    revision=1, batches=[], coverage=[], at=NOW, origin=Origin(),
)  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLWORK_URL", mlflow_server.url())
        patch.setenv("CELLWORK_TOKEN", "token")
        with Client(mlflow_server.url(), "token") as client:
            yield client


def model(depth: int = 3) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    encode = make_column_transformer((encoder, ["carrier"]), remainder="passthrough")
    return make_pipeline(encode, HistGradientBoostingClassifier(max_iter=10, max_depth=depth)).fit(
        to_pandas(FRAME), LATE
    )


def register(name: str, fitted: Any = None, **changes: Any) -> VersionRef:
    given: dict[str, Any] = {
        "dataset": DATASET,
        "X_example": FRAME,
        "metrics": {"roc_auc": Metric(value=0.7, low=0.6, high=0.8)},
    }
    return registry.register(
        fitted or model(), name, **{**given, "parameters": {"max_depth": 3}, "baseline": "hour", **changes}
    )


def test_a_registered_model_comes_back_with_its_origin_and_its_scores(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLWORK_NOTEBOOK", "/home/x/train.ipynb")
    monkeypatch.setenv("CELLWORK_RUN", "run_0123")
    fitted = model()
    ref = register("delay", fitted, description="the first")
    assert (ref.name, ref.version) == ("trains/delay", 1)
    found = versions.get(client, "trains/delay", 1)
    assert found.digest == ref.digest
    assert found.description == "the first"
    expected = {
        "notebook": "train.ipynb",
        "run": "run_0123",
        "dataset": DATASET.id,
        "observations": "departures",
        "label": "late",
        "baseline": "hour",
    }
    assert expected.items() <= found.tags.items()
    folder = package.download(client, ref.name, ref.version, tmp_path / "model")
    assert package.digest(folder) == ref.digest
    assert [c.kind for c in package.read(folder).columns] == ["number", "number", "text"]
    frame = to_pandas(FRAME, package.read(folder).columns)
    assert package.scores(package.load(folder), frame).tolist() == fitted.predict_proba(to_pandas(FRAME))[:, 1].tolist()


def test_mlflows_own_client_sees_the_run_and_serves_the_model(client: Client) -> None:
    import mlflow

    fitted = model(2)
    ref = register("own_client", fitted)
    mlflow.set_tracking_uri(mlflow_server.url() + mlflow_server.PREFIX)
    run = mlflow.get_run(versions.get(client, ref.name, ref.version).run)
    assert mlflow.get_experiment(run.info.experiment_id).name == "trains"
    assert run.data.metrics == {"roc_auc": 0.7, "roc_auc_low": 0.6, "roc_auc_high": 0.8}
    assert run.data.params == {"max_depth": "3"}
    assert run.info.status == "FINISHED"
    loaded = mlflow.pyfunc.load_model(f"models:/trains.own_client/{ref.version}")
    assert {column.type.name for column in loaded.metadata.signature.inputs} == {"double", "string"}
    assert np.allclose(loaded.predict(to_pandas(FRAME)), fitted.predict_proba(to_pandas(FRAME)))


def test_registering_again_makes_the_next_version_and_lists_both(client: Client) -> None:
    first, second = register("twice"), register("twice", model(1))
    assert (first.version, second.version) == (1, 2)
    assert first.digest != second.digest
    versions.set_alias(client, "trains/twice", "candidate", 2)
    assert versions.aliases(client, "trains/twice") == {"candidate": 2}
    found = [v for v in versions.of_project(client, "trains") if v.name == "trains/twice"]
    assert [(v.version, v.aliases) for v in found] == [(2, ["candidate"]), (1, [])]
    assert versions.of_project(client, "train") == []


def test_a_project_whose_name_has_an_underscore_lists_no_other_projects_models(client: Client) -> None:
    """To MLflow's LIKE an underscore is any character."""
    for name in ("my_trains/mine", "my-trains/theirs"):
        register(name)
        versions.set_alias(client, name, "candidate", 1)
    assert [v.name for v in versions.of_project(client, "my_trains")] == ["my_trains/mine"]
    assert versions.aliases_of_project(client, "my_trains") == {"my_trains/mine": {"candidate": 1}}
    assert versions.of_project(client, "my_______") == []


def test_a_changed_artifact_is_refused_and_leaves_nothing_behind(client: Client, tmp_path: Path) -> None:
    ref = register("changed")
    path = versions.artifact_path(client, ref.name, ref.version)
    client.connection.raw(
        "mlflow", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}/{package.MODEL}", b"something else"
    )
    with pytest.raises(Refused, match="is not what was registered"):
        package.download(client, ref.name, ref.version, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_registered_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="trains/nothing@1"):
        versions.get(client, "trains/nothing", 1)
    with pytest.raises(NotFound, match="trains/nothing"):
        versions.aliases(client, "trains/nothing")


def test_a_wrong_example_is_refused_before_anything_is_registered(client: Client) -> None:
    with pytest.raises(BadInput, match=r"'other'.*is not one of dataset 'training'"):
        register("wrong", X_example=FRAME.with_columns(other=1))
    with pytest.raises(BadInput, match="does not score its example"):
        register("wrong", X_example=FRAME.drop("hour"))
    with pytest.raises(NotFound):
        versions.get(client, "trains/wrong", 1)


def test_registering_needs_no_plugin_of_mlflow(client: Client) -> None:
    """MLflow's own client imports every plugin that is installed; Feast's takes seconds and hundreds of megabytes."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import test_registry\n"
        "ref = test_registry.register('light'); assert ref.version == 1, ref; assert 'feast' not in sys.modules, 'feast'"
    )
    folder = Path(__file__).parent
    command = [sys.executable, "-c", script, str(folder), str(folder.parent)]
    subprocess.run(command, check=True, timeout=120)


def test_what_mlflow_does_not_take_is_told_in_its_words(client: Client) -> None:
    with pytest.raises(BadInput, match=r"answered 400: .*metric"):
        register("odd", metrics={"a metric with ? in it": 1.0})
    runs = tracking.send(
        client, "/runs/search", {"experiment_ids": [tracking.ensure_experiment(client, "trains")], "max_results": 1}
    )
    assert runs["runs"][0]["info"]["status"] == "FAILED"


def test_a_registry_that_does_not_answer_is_unavailable_in_bounded_time() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with (
            Client(f"http://127.0.0.1:{closed.getsockname()[1]}", "") as client,
            pytest.raises(Unavailable, match="does not answer"),
        ):
            register("nowhere", client=client)
        assert time.monotonic() - started < 120
