"""From a fitted estimator to a registered version: one training run in MLflow, with its origin, and one model folder with its digest.

The version is safe to hand on: skops instead of pickle, every column's kind and an example beside it, its dataset and cell in its tags.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import ids, origin, project
from cellwork.client import base
from cellwork.errors import BadInput, Unavailable
from cellwork.models import columns, package, versions
from cellwork.wire import PREFIX
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Metric, VersionRef

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

    from cellwork.data.dataset import Rows

EXAMPLE_ROWS = 5
REQUIREMENTS = ("scikit-learn", "skops", "numpy", "scipy", "pandas")


def register(
    model: Any,
    name: str,
    *,
    dataset: Dataset | Rows,
    X_example: pl.DataFrame | pd.DataFrame,
    metrics: Mapping[str, float | Metric] | None = None,
    parameters: Mapping[str, Any] | None = None,
    baseline: str = "",
    description: str = "",
) -> VersionRef:
    """Log a training run and register its model as the next version of `name`.

    Parameters
    ----------
    model : a fitted scikit-learn estimator that takes the columns of `X_example`.
    name : ``name`` in the project of `dataset`, or ``project/name``.
    dataset : what it was trained on, or a part of it.
    X_example : rows as they were given to `fit`; the first few are kept with the model.
    metrics, parameters : what is written on the training run.
    baseline : the input column whose rate the model must beat at evaluation.

    Raises
    ------
    BadInput
        The example's columns are not the dataset's, or the model does not score them.
    Refused
        The model holds a type that is not scikit-learn's, NumPy's or SciPy's.
    Unavailable
        MLflow does not answer.
    """
    trained = dataset if isinstance(dataset, Dataset) else dataset.record
    full = name if "/" in name else f"{trained.project}/{ids.name(name)}"
    tags = {versions.TAG + key: value for key, value in _origin(trained, baseline).items() if value}
    with tempfile.TemporaryDirectory(prefix="cellwork-model-") as temporary, tracking() as client:
        folder = Path(temporary) / "model"
        manifest = _manifest(model, X_example, trained)
        run = _training_run(client, ids.split_name(full)[0], full, tags, metrics or {}, parameters or {})
        logged = client.create_logged_model(
            run.info.experiment_id, name=ids.split_name(full)[1], source_run_id=run.info.run_id
        )
        save(model, manifest, folder, logged_model=logged.model_id, run=run.info.run_id)
        tags[versions.TAG + "digest"] = package.digest(folder)
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        number = _next_version(client, full, logged.model_id, run.info.run_id, tags, description)
        client.set_terminated(run.info.run_id)
    return VersionRef(name=full, version=number, digest=tags[versions.TAG + "digest"])


def save(
    model: Any, manifest: package.Manifest, folder: Path, *, logged_model: str | None = None, run: str | None = None
) -> None:
    """Write the model folder: MLflow's format with our manifest in it; raises Refused for a type that may not be loaded."""
    import mlflow.sklearn
    import skops.io
    from mlflow.models import Model

    trusted = package.untrusted(skops.io.dumps(model))
    frame = package.example(manifest)
    mlflow.sklearn.save_model(
        model, folder, mlflow_model=Model(model_id=logged_model, run_id=run), serialization_format="skops",
        skops_trusted_types=trusted, signature=_signature(manifest, _trial(model, frame)),
        pip_requirements=[f"{package_name}=={installed(package_name)}" for package_name in REQUIREMENTS],
        pyfunc_predict_fn="predict_proba" if manifest.kind == "classifier" else "predict",
    )  # fmt: skip
    (folder / package.MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))


@contextmanager
def tracking() -> Iterator[MlflowClient]:
    """Yield MLflow's client of this platform; its errors become ours, and its own retries are bounded to some seconds."""
    for key, value in _tracking_variables().items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    uri = os.environ["MLFLOW_TRACKING_URI"]
    try:
        yield MlflowClient(uri, registry_uri=uri)
    except (MlflowException, RequestException) as error:
        text = str(error).splitlines()[0][:300]
        if getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"):
            raise BadInput("training run", "", f"was not taken by MLflow: {text}", "mend the value it names") from None
        raise Unavailable(
            "MLflow", uri, f"did not take the training run ({text})", "look at: cellwork status"
        ) from None


def _tracking_variables() -> dict[str, str]:
    """Return what MLflow's client reads from the environment, where it is not set there already."""
    bounds = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return bounds
    url, token = base.address()
    return {**bounds, "MLFLOW_TRACKING_URI": url + PREFIX["mlflow"], "MLFLOW_TRACKING_TOKEN": token}


def _origin(dataset: Dataset, baseline: str) -> dict[str, str]:
    """Return the tags that say where the model comes from."""
    from cellwork.errors import NotFound

    here = msgspec.structs.asdict(origin.gather())
    if not here["project"]:
        try:
            here["project"] = project.find().name
        except NotFound:
            here["project"] = dataset.project
    about = {
        "dataset": dataset.id,
        "dataset_sha256": dataset.content_sha256,
        "observations": dataset.observations,
        "label": dataset.label,
        "baseline": baseline,
    }
    features = msgspec.json.encode(dataset.features).decode()
    inputs = msgspec.json.encode(dataset.inputs).decode()
    return {
        **{key: str(value) for key, value in here.items() if value},
        **about,
        "features": features,
        "inputs": inputs,
    }


def _manifest(model: Any, X_example: pl.DataFrame | pd.DataFrame, dataset: Dataset) -> package.Manifest:
    unknown = sorted(set(map(str, X_example.columns)) - {*dataset.inputs, *dataset.features})
    if unknown:
        raise BadInput(
            "column of the example",
            unknown[0],
            f"is not one of dataset {dataset.name!r}",
            "train on the dataset's inputs and features only",
        )
    kinds = columns.kinds(X_example)
    rows = columns.to_pandas(X_example.head(EXAMPLE_ROWS), kinds)
    example = [
        {key: None if value != value else value for key, value in row.items()} for row in rows.to_dict("records")
    ]
    kind = "classifier" if hasattr(model, "predict_proba") else "regressor"
    return package.Manifest(kind=kind, columns=kinds, example=example)  # type: ignore[arg-type]


def _signature(manifest: package.Manifest, output: Any) -> ModelSignature:
    """Return MLflow's signature: double or string a column, whatever values the example happens to hold."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec("string" if column.kind == "text" else "double", column.name) for column in manifest.columns]
    return ModelSignature(inputs=Schema(inputs), outputs=infer_signature(output).inputs)


def _trial(model: Any, frame: pd.DataFrame) -> Any:
    """Return what the model says to the example; raises BadInput if it can't, before anything is logged as good."""
    from sklearn.exceptions import NotFittedError

    try:
        return model.predict_proba(frame) if hasattr(model, "predict_proba") else model.predict(frame)
    except (NotFittedError, ValueError, TypeError, KeyError) as error:
        raise BadInput(
            "model", type(model).__name__, f"does not score its example: {error}", "give rows as they were given to fit"
        ) from None


def _training_run(
    client: MlflowClient,
    experiment: str,
    name: str,
    tags: dict[str, str],
    metrics: Mapping[str, float | Metric],
    parameters: Mapping[str, Any],
) -> Any:
    from mlflow.entities import Metric as Logged
    from mlflow.entities import Param
    from mlflow.utils.time import get_current_time_millis

    found = client.get_experiment_by_name(experiment)
    run = client.create_run(
        found.experiment_id if found else client.create_experiment(experiment),
        run_name=name,
        tags={"mlflow.source.type": "NOTEBOOK", **tags},
    )
    now = get_current_time_millis()
    flat: dict[str, float] = {}
    for key, metric in metrics.items():
        flat |= (
            {key: metric.value, f"{key}_low": metric.low, f"{key}_high": metric.high}
            if isinstance(metric, Metric)
            else {key: float(metric)}
        )
    client.log_batch(
        run.info.run_id,
        [Logged(k, v, now, 0) for k, v in flat.items()],
        [Param(k, str(v)) for k, v in parameters.items()],
    )
    return run


def _next_version(client: MlflowClient, name: str, model: str, run: str, tags: dict[str, str], description: str) -> int:
    from mlflow.exceptions import MlflowException

    registered = versions.mlflow_name(name)
    try:
        client.create_registered_model(registered)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        registered, f"models:/{model}", run, tags=tags, description=description, await_creation_for=0, model_id=model
    )
    return int(made.version)
