"""MLflow's REST API, as far as training and the registry need it.

Not MLflow's own client: its first call imports every installed plugin (Feast's takes seconds), and it repeats requests that make things.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cellwork import clock
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Unavailable

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


def get(client: Client, path: str, /, **query: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.connection.call("mlflow", "GET", API + path, dict, **query)
    return answer


def send(client: Client, path: str, body: Mapping[str, Any], *, method: str = "POST") -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(
        client.connection.raw("mlflow", method, API + path, msgspec.json.encode(body)).content, type=dict
    )
    return answer


def pages(client: Client, path: str, key: str, **query: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows under `key` of a paged answer."""
    token = ""
    while True:
        answer = get(client, path, page_token=token, **query)
        yield from answer.get(key, [])
        token = answer.get("next_page_token", "")
        if not token:
            return


def upload(client: Client, folder: Path, uri: str) -> None:
    """Send every file of `folder` to the artifact folder `uri`.

    Raises
    ------
    Unavailable
        A file could not be kept: the store is full, say.
    """
    root = artifact_path(uri)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"{ARTIFACTS}/{root}/{path.relative_to(folder).as_posix()}"
        try:
            client.connection.raw("mlflow", "PUT", name, path.read_bytes(), "application/octet-stream")
        except Unavailable as error:
            size = f"{path.name}, {path.stat().st_size:,} bytes"
            raise Unavailable(
                "model file",
                size,
                f"could not be kept: {error}",
                "make room where MLflow keeps artifacts, and register again",
            ) from None


def artifact_path(uri: str) -> str:
    """Return the path in MLflow's artifact service of ``mlflow-artifacts:/path``; raises BadInput for another store."""
    scheme, _, rest = uri.partition(":")
    if scheme != "mlflow-artifacts":
        raise BadInput("artifacts", uri, "are not kept by MLflow's artifact service", "log them through the platform")
    return (rest[2:].partition("/")[2] if rest.startswith("//") else rest).strip("/")


def ensure_experiment(client: Client, name: str) -> str:
    """Return the id of the experiment `name`; it is made if there is none."""
    for _ in range(2):
        try:
            return str(get(client, "/experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])
        except NotFound:
            pass
        try:
            return str(send(client, "/experiments/create", {"name": name})["experiment_id"])
        except BadInput:  # another made it just now
            continue
    raise BadInput("experiment", name, "was deleted in MLflow", "restore it there, or take another project name")


def ensure_model(client: Client, name: str) -> None:
    """Make the registered model `name` (MLflow's form) if there is none."""
    try:
        get(client, "/registered-models/get", name=name)
    except NotFound:
        try:
            send(client, "/registered-models/create", {"name": name})
        except BadInput:  # another made it just now
            get(client, "/registered-models/get", name=name)


def start_run(client: Client, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Return the id of a new training run."""
    body = {"experiment_id": experiment, "run_name": name, "start_time": now(), "tags": pairs(tags)}
    return str(send(client, "/runs/create", body)["run"]["info"]["run_id"])


def end_run(client: Client, run: str, status: str = "FINISHED") -> None:
    send(client, "/runs/update", {"run_id": run, "status": status, "end_time": now()})


def log(client: Client, run: str, metrics: Mapping[str, float], parameters: Mapping[str, Any]) -> None:
    at = now()
    body = {
        "run_id": run,
        "metrics": [{"key": key, "value": value, "timestamp": at, "step": 0} for key, value in metrics.items()],
        "params": [{"key": key, "value": str(value)[:6000]} for key, value in parameters.items()],
    }
    send(client, "/runs/log-batch", body)


def start_model(client: Client, experiment: str, name: str, run: str) -> tuple[str, str]:
    """Return id and artifact folder of a new logged model of a training run."""
    made = send(client, "/logged-models", {"experiment_id": experiment, "name": name, "source_run_id": run})
    info = made["model"]["info"]
    send(client, "/runs/outputs", {"run_id": run, "models": [{"model_id": info["model_id"], "step": 0}]})
    return info["model_id"], info["artifact_uri"]


def end_model(client: Client, model: str) -> None:
    body = {"model_id": model, "status": "LOGGED_MODEL_READY"}
    send(client, f"/logged-models/{model}", body, method="PATCH")


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def now() -> int:
    """Return milliseconds since 1970, MLflow's form of a time."""
    return round(clock.now().timestamp() * 1000)
