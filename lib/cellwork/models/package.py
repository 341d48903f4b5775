"""The folder of a registered version: fetched, checked against its digest, loaded under a trust rule.

The folder is MLflow's own (`MLmodel`, requirements, the model in skops format) and `cellwork.json`, which says all that a reader needs
without MLflow. A type is instantiated if it is a class of scikit-learn, NumPy or SciPy, one that is named here, or one of a wheel in the
folder that a named person trusted in this place (`wheels`). Functions never are.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused, TooLarge
from cellwork.models import tracking, versions, wheels
from cellwork.models.columns import Column, to_pandas
from cellwork.models.wheels import Wheel
from cellwork.wire import Struct

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MANIFEST = "cellwork.json"
MODEL = "model.skops"
MOST_BYTES = 2 * 1024**3
TRUSTED_PACKAGES = ("sklearn.", "numpy.", "scipy.")
TRUSTED = frozenset(
    {
        "builtins.object", "collections.OrderedDict", "cellwork.evaluation.baseline.RateBy", "cellwork.evaluation.baseline.LastValue", "cellwork.evaluation.baseline.Constant",
        "cellwork.training.network.NetworkClassifier", "cellwork.training.network.NetworkRegressor", "cellwork.training.series.Arima",
        "cellwork.features.transform.Transform", "cellwork.training.steps.Numbers", "cellwork.training.steps.Select", "cellwork.training.steps.Words", "lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier", "lightgbm.sklearn.LGBMRegressor",
        "xgboost.core.Booster", "xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRegressor",
    }
)  # fmt: skip
NEVER = frozenset({"testing", "tests", "f2py", "ctypeslib", "_build_utils"})
"""Module names inside trusted packages that no model needs and that run what they are given."""


class Manifest(Struct):
    """What `cellwork.json` says: the model's file, whether it classifies, its columns in order, some rows to try it on."""

    kind: Literal["classifier", "regressor"]
    columns: list[Column]
    example: list[dict[str, Any]]
    file: str = MODEL
    format: Literal["skops"] = "skops"
    transformers: list[str] = []
    """Ids ``tf_…`` of the fitted steps in it that are the platform's kind."""
    wheels: list[Wheel] = []
    """Code of the author's own that it needs."""


def read(folder: Path) -> Manifest:
    """Return the manifest of a model folder; raises BadInput if there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadInput(
            "model folder",
            folder.name,
            f"has no readable {MANIFEST} ({error})",
            "register the model with cellwork.models.registry.register",
        ) from None


def digest(folder: Path) -> str:
    """Return the content digest of a model folder: SHA-256 over the sorted relative paths and their files' SHA-256, in hex."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            total.update(
                f"{path.relative_to(folder).as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return total.hexdigest()


def download(client: Client, name: str, version: int, folder: Path) -> Path:
    """Fetch the version into `folder` (it appears whole, or not at all) and return it.

    Raises
    ------
    NotFound
        There is no such version, or it has no files.
    Refused
        Its content is not what was registered.
    """
    registered = versions.get(client, name, version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        _fetch(client, versions.artifact_path(client, name, version), part)
        found = digest(part)
        if found != registered.digest:
            raise Refused(
                f"content of {registered.subject}",
                found[:12],
                f"is not what was registered ({registered.digest[:12] or 'no digest'})",
                "register it again",
            )
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _fetch(client: Client, root: str, folder: Path) -> None:
    files = list(_listing(client, root, PurePosixPath()))
    if not files:
        raise NotFound("model files", root, "are not in MLflow's artifact service", "register the model again")
    total = sum(size for _, size in files)
    if total > MOST_BYTES:
        raise TooLarge(
            "model folder", f"{total} bytes", f"is over the limit of {MOST_BYTES} bytes", "make the model smaller"
        )
    for path, _ in files:
        answer = client.connection.raw("mlflow", "GET", f"{tracking.ARTIFACTS}/{root}/{path}")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(answer.content)


def _listing(client: Client, root: str, below: PurePosixPath, depth: int = 0) -> Sequence[tuple[PurePosixPath, int]]:
    """Return (path below `root`, size) of every file; a name that could leave the folder is refused."""
    where = f"{root}/{below}" if below.parts else root
    answer: dict[str, Any] = client.connection.call("mlflow", "GET", tracking.ARTIFACTS, dict, path=where)
    found: list[tuple[PurePosixPath, int]] = []
    for entry in answer.get("files", []):
        name = str(entry["path"])
        if "/" in name or name in ("", ".", "..") or depth > 8:
            raise Refused("model file", name, "has a name that could leave its folder", "register the model again")
        if entry.get("is_dir"):
            found += _listing(client, root, below / name, depth + 1)
        else:
            found.append((below / name, int(entry.get("file_size", 0))))
    return found


def untrusted(source: Path | bytes, own: Sequence[str] = ()) -> list[str]:
    """Return the types in a skops file (or its bytes) that only the trust rule can allow; raises Refused for any it does not.

    `own` are modules that trusted wheels bring.
    """
    import skops.io

    names = skops.io.get_untrusted_types(**({"data": source} if isinstance(source, bytes) else {"file": source}))
    for name in names:
        if name not in TRUSTED and name.partition(".")[0] not in own and not _is_harmless(name):
            raise Refused(
                "type in the model",
                name,
                "is not one that may be loaded",
                "build the model from scikit-learn's own classes, or register it with its code: register(…, code=[module])",
            )
    return list(names)


def _is_harmless(name: str) -> bool:
    """A class (never a function) of a trusted package, outside its testing and building parts."""
    if not name.startswith(TRUSTED_PACKAGES) or NEVER & set(name.split(".")):
        return False
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False


def load(folder: Path) -> Any:
    """Return the fitted estimator of a model folder. Its predictions run its author's choices: do it in a child process.

    Raises
    ------
    BadInput
        The folder or its model file can't be read.
    Refused
        It holds a type that the trust rule does not allow, or code that nobody trusted here.
    """
    import zipfile

    import skops.io

    manifest = read(folder)
    path = folder / manifest.file
    wheels.add_to_path(folder, manifest.wheels)
    try:
        return skops.io.load(
            path, trusted=untrusted(path, [name for wheel in manifest.wheels for name in wheel.modules])
        )
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise BadInput("model file", path.name, f"can't be loaded: {error}", "register the model again") from None


def example(manifest: Manifest) -> pd.DataFrame:
    """Return the manifest's example rows as the model sees them."""
    table = {column.name: [row.get(column.name) for row in manifest.example] for column in manifest.columns}
    return to_pandas(table, manifest.columns)


def scores(model: Any, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return one float64 a row: the probability of the second class of a classifier, the prediction of a regressor."""
    import numpy as np

    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(frame), dtype=float)[:, 1]
    return np.asarray(model.predict(frame), dtype=float)
