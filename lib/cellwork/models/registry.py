"""From a fitted estimator to a registered version: one training run in MLflow, with its origin, and one model folder with its digest.

The version is safe to hand on: skops instead of pickle, every column's kind and an example beside it, its dataset and cell in its tags.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import ids, origin, project
from cellwork.client import Client, connect
from cellwork.errors import BadInput, CellworkError, NotFound
from cellwork.features.transform import Transform
from cellwork.models import columns, environment, package, tracking, versions, wheels
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Metric, VersionRef

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from mlflow.models import ModelSignature

    from cellwork.data.dataset import Rows

EXAMPLE_ROWS = 5
REQUIREMENTS = ("scikit-learn", "skops", "numpy", "scipy", "pandas")
OWN = {"xgboost.": ("xgboost", "xgboost-cpu"), "lightgbm.": ("lightgbm",), "cellwork.": ("cellwork",)}
"""How a type's name begins -> the distributions that may have brought it."""


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
    code: Sequence[ModuleType | Path] = (),
    client: Client | None = None,
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
    code : modules, files or wheels with classes of one's own that are in the model; they travel as wheels, and run where a named
        person trusts them.
    client : default: the platform this process belongs to.

    Raises
    ------
    BadInput
        The example's columns are not the dataset's, or the model does not score them.
    Refused
        The model holds a type that is neither one that may be loaded nor one of `code`.
    Unavailable
        MLflow does not answer.
    """
    trained = dataset if isinstance(dataset, Dataset) else dataset.record
    full = name if "/" in name else f"{trained.project}/{ids.name(name)}"
    about = {**_origin(trained, baseline), "split": _split(dataset)}
    tags = {versions.TAG + key: value for key, value in about.items() if value}
    client = connect() if client is None else client
    manifest = _manifest(model, X_example, trained)
    space, short = ids.split_name(full)
    experiment = tracking.ensure_experiment(client, space)
    run = tracking.start_run(client, experiment, full, tags)
    try:
        tracking.log(client, run, _flat(metrics or {}), parameters or {})
        logged, where = tracking.start_model(client, experiment, short, run)
        with tempfile.TemporaryDirectory(prefix="cellwork-model-") as temporary:
            folder = Path(temporary) / "model"
            save(model, manifest, folder, code=code, logged_model=logged, run=run)
            tags[versions.TAG + "digest"] = package.digest(folder)
            tracking.upload(client, folder, where)
        tracking.end_model(client, logged)
        number = versions.create(client, full, source=f"models:/{logged}", run=run, tags=tags, description=description)
    except CellworkError:
        with suppress(CellworkError):  # what went wrong first is what is told
            tracking.end_run(client, run, "FAILED")
        raise
    tracking.end_run(client, run)
    return VersionRef(name=full, version=number, digest=tags[versions.TAG + "digest"])


def save(
    model: Any,
    manifest: package.Manifest,
    folder: Path,
    *,
    code: Sequence[ModuleType | Path] = (),
    logged_model: str | None = None,
    run: str | None = None,
) -> None:
    """Write the model folder: MLflow's format with our manifest in it; raises Refused for a type that may not be loaded."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.sklearn
    import skops.io
    from mlflow.models import Model

    brought = [wheels.build(each, folder.parent / "code") for each in code]
    manifest = msgspec.structs.replace(manifest, wheels=[wheels.describe(path) for path in brought])
    trusted = package.untrusted(skops.io.dumps(model), [name for wheel in manifest.wheels for name in wheel.modules])
    needed = [*REQUIREMENTS, *environment.behind(trusted, OWN)]
    frame = package.example(manifest)
    mlflow.sklearn.save_model(
        model, folder, mlflow_model=Model(model_id=logged_model, run_id=run), serialization_format="skops",
        skops_trusted_types=trusted, signature=_signature(manifest, _trial(model, frame)),
        pip_requirements=[f"{package_name}=={installed(package_name)}" for package_name in needed],
        pyfunc_predict_fn="predict_proba" if manifest.kind == "classifier" else "predict",
    )  # fmt: skip
    for path, wheel in zip(brought, manifest.wheels, strict=True):
        (folder / wheel.file).parent.mkdir(exist_ok=True)
        path.rename(folder / wheel.file)
    (folder / package.MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    (folder / environment.LOCK).write_text(environment.lock(needed))


def _flat(metrics: Mapping[str, float | Metric]) -> dict[str, float]:
    """Return name -> number; a metric with an interval is three of them."""
    flat: dict[str, float] = {}
    for name, metric in metrics.items():
        if isinstance(metric, Metric):
            flat |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
        else:
            flat[name] = float(metric)
    return flat


def _origin(dataset: Dataset, baseline: str) -> dict[str, str]:
    """Return the tags that say where the model comes from."""
    here = msgspec.structs.asdict(origin.gather())
    owned: dict[str, str] = {}
    try:
        found = project.find()
        here["project"] = here["project"] or found.name
        owned = {"owner": found.owner, "contact": found.contact} if found.name == dataset.project else {}
    except NotFound:
        here["project"] = here["project"] or dataset.project
    said = {key: str(value) for key, value in here.items() if value}
    return {**said, **owned, **versions.about(dataset), "baseline": baseline}


def _split(dataset: Dataset | Rows) -> str:
    """Return the recipe of the part it was trained on as JSON; rows that a strategy chose one by one are kept by the platform, not here."""
    recipe = dict(getattr(dataset, "recipe", {}))
    recipe.pop("places", None)
    return msgspec.json.encode(recipe).decode() if recipe else ""


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
    steps = sorted(set(_transformers(model)))
    return package.Manifest(kind=kind, columns=kinds, example=example, transformers=steps)  # type: ignore[arg-type]


def _transformers(model: Any) -> Iterator[str]:
    """Yield the ids of the fitted `Transform` steps of a model, through pipelines, column transformers and what wraps a model."""
    if isinstance(model, Transform):
        yield model.recorded.id
        return
    inner = [step for _, step in getattr(model, "steps", [])] + [
        each[1] for each in getattr(model, "transformers_", [])
    ]
    for each in [*inner, *(getattr(model, name, None) for name in ("estimator_", "best_estimator_"))]:
        if each is not None and not isinstance(each, str):
            yield from _transformers(each)


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
