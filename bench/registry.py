"""Register, evaluate and promote a version, beside MLflow's own log and register of the same pipeline, on one MLflow server.

Rounds alternate the cases; the table has medians of seconds. Evaluation is shown beside them: it starts the child process that scores.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 5
ROOT = Path(__file__).resolve().parents[1]
CASES = ("register", "MLflow: log_model, registered", "evaluate", "gate", "promote", "rollback")


def fitted(world: Any, columns: list[str]) -> Any:
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    from cellwork.training import fit

    encode = make_column_transformer(
        (OneHotEncoder(), make_column_selector(dtype_include=object)),
        (SimpleImputer(), make_column_selector(dtype_include=float)),
    )
    return fit(
        make_pipeline(encode, RandomForestClassifier(100, max_depth=10)),
        world.frame.select(columns),
        world.frame["late"],
    )


def peer(model: Any, example: Any) -> None:
    import mlflow
    import mlflow_server

    mlflow.set_tracking_uri(mlflow_server.url() + mlflow_server.PREFIX)
    mlflow.set_experiment("peer")
    with mlflow.start_run():
        mlflow.log_metric("roc_auc", 0.7)
        mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name="peer.forest",
            input_example=example,
            serialization_format="cloudpickle",
        )


def timed(seconds: dict[str, list[float]], case: str, work: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    answer = work()
    seconds[case].append(time.perf_counter() - began)
    return answer


def main() -> None:
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "hub")]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import evaluation_world
    from evaluation_world import GOOD
    from raw_platform import call

    from cellwork.models import registry
    from cellwork.models.columns import to_pandas
    from cellwork.wire.gate import Rollback
    from cellwork_hub.platform import promotion

    world = evaluation_world.world()
    model, example = fitted(world, GOOD), world.frame.select(GOOD)
    given: dict[str, Any] = {"dataset": world.dataset, "X_example": example, "baseline": "hour", "client": world.mlflow}
    os.environ["CELLWORK_USER"] = "bench"
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(ROUNDS + 1):  # the first is warming
        version = timed(seconds, "register", lambda: registry.register(model, "rail/forest", **given)).version
        timed(seconds, "MLflow: log_model, registered", lambda: peer(model, to_pandas(example).head(5)))
        timed(seconds, "evaluate", functools.partial(world.evaluate, "forest", version))
        timed(seconds, "gate", functools.partial(promotion.gate, world.state, "rail/forest", version))
        timed(seconds, "promote", functools.partial(world.promote, "forest", version))
        if len(seconds["promote"]) > 1:
            timed(seconds, "rollback", lambda: promotion.rollback(world.state, call(), Rollback(name="rail/forest")))
            world.promote("forest", version)
    print(
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n\n| step | median s | best | worst |\n| --- | --- | --- | --- |"
    )
    for case, values in seconds.items():
        kept = values[1:]
        print(f"| {case} | {statistics.median(kept):.2f} | {min(kept):.2f} | {max(kept):.2f} |")


if __name__ == "__main__":
    main()
