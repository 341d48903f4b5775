"""The prediction log's old days as Parquet beside its table: python bench/compaction.py [ROWS]

One log of ROWS (300,000) predictions of 20 features, of one old day: bytes, the time of a page, of one prediction and of a repeated
key before and after compaction, and what one who writes keyed predictions meanwhile notices. Every page is compared.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lib"))
import prediction_log

from cellwork.serving import compaction
from cellwork.serving.log import PredictionLog
from cellwork.wire.endpoints import Prediction

PAGE = 1000


def fill(log: PredictionLog, count: int) -> None:
    dice = random.Random(0)
    for start in range(0, count, 5000):
        log.write([_prediction(dice, n, count) for n in range(start, min(count, start + 5000))])


def _prediction(dice: random.Random, number: int, count: int) -> Prediction:
    at = prediction_log.START + timedelta(hours=23 * number / count)
    made = prediction_log.prediction(dice, at, number)
    return msgspec.structs.replace(made, features={f"x{k}": round(dice.gauss(0, 1), 6) for k in range(20)})


def milliseconds(work: Callable[[], Any], count: int = 20) -> float:
    """Return the median time."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)[count // 2] * 1e3


def read(log: PredictionLog, known: list[Prediction]) -> dict[str, float]:
    plain, keyed = (
        next(p for p in known if bool(p.request_id) == wanted and not p.batch_run) for wanted in (False, True)
    )
    middle = known[len(known) // 2].seq
    return {
        f"a page of {PAGE} ms": milliseconds(lambda: log.after(middle, limit=PAGE)),
        f"the last {PAGE} ms": milliseconds(lambda: log.after(-PAGE, limit=PAGE)),
        "one by its id ms": milliseconds(lambda: log.get(plain.id)),
        "a repeated key ms": milliseconds(lambda: log.find(keyed.endpoint, [keyed.id])),
    }


def everything(log: PredictionLog) -> list[Prediction]:
    found: list[Prediction] = []
    while page := log.after(found[-1].seq if found else 0, limit=10_000):
        found += page
    return found


def write_on(log: PredictionLog, stop: threading.Event, times: list[float]) -> None:
    dice = random.Random(1)
    for number in range(10**9, 2 * 10**9):
        if stop.is_set():
            return
        began = time.perf_counter()
        log.write([prediction_log.prediction(dice, prediction_log.START + timedelta(days=3), number)])
        times.append(time.perf_counter() - began)
        time.sleep(0.01)


def compact(log: PredictionLog) -> tuple[float, list[float]]:
    assert log.archive is not None
    stop, times = threading.Event(), list[float]()
    writer = threading.Thread(target=write_on, args=(log, stop, times))
    writer.start()
    began = time.perf_counter()
    compaction.compact(log.engine, log.archive.folder, prediction_log.START + timedelta(days=1))
    seconds = time.perf_counter() - began
    stop.set()
    writer.join()
    return seconds, sorted(times)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = prediction_log.opened(folder)
        fill(log, count)
        with log.engine.connect() as db:
            pages, size = (db.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "page_size"))
        known = everything(log)
        before = {"MB": pages * size / 1e6, **read(log, known)}
        seconds, times = compact(log)
        after = {
            "MB": sum(file.stat().st_size for file in folder.glob("days/day=*/*.parquet")) / 1e6,
            **read(log, known),
        }
        assert everything(log)[:count] == known
    print(
        f"{count:,} predictions, load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores; every one the same before and after"
    )
    print("| | table | Parquet |\n| --- | ---: | ---: |")
    for name, value in before.items():
        print(f"| {name} | {value:.1f} | {after[name]:.1f} |")
    print(
        f"\n{count / seconds:,.0f} predictions a second ({seconds:.0f} s); one who wrote meanwhile waited {times[len(times) // 2] * 1e3:.1f} ms "
        f"(median), {times[int(len(times) * 0.99)] * 1e3:.0f} ms (p99), {times[-1] * 1e3:.0f} ms (longest of {len(times)})"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000)
