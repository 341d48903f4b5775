"""What many small models cost: python bench/many_models.py [MODELS] [ROUNDS]

`cellwork serve` as users start it, on homes with no, ten and MODELS (100) endpoints of boosted trees, each with a model of its own:

- the time from the command until all ten answer, when their home has served them before (median of ROUNDS), and of the very first start;
- the memory of each process (PSS, from the kernel) at rest, and after every model has answered;
- beside them ten models that can't be read out as programs and so compute with scikit-learn, a child process each.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

FEATURES = 8
NAMES = [f"x{k}" for k in range(FEATURES)]
TREES = 30
FEW = 10
BODY = {"rows": [{"features": dict.fromkeys(NAMES, 0.5)}]}


def save_models(folder: Path, count: int, *, compiles: bool = True) -> list[str]:
    """Write `count` model folders, no two alike, and return the arguments of `cellwork serve` that name them."""
    import numpy as np
    import pandas as pd
    from sklearn.ensemble import BaggingClassifier, GradientBoostingClassifier

    from cellwork.models import columns, package, registry

    dice, words = np.random.default_rng(0), []
    for number in range(count):
        frame = pd.DataFrame(dice.normal(size=(300, FEATURES)), columns=NAMES)
        boosted = GradientBoostingClassifier(n_estimators=TREES)
        model = (boosted if compiles else BaggingClassifier(boosted, 2)).fit(frame, (frame["x0"] > 0).astype(int))
        manifest = package.Manifest(
            kind="classifier", columns=columns.kinds(frame), example=frame.head(3).to_dict("records")
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            registry.save(model, manifest, folder / str(number))
        words.append(f"bench/m{number}={folder / str(number)}")
    return words


def read_out(words: list[str], home: Path) -> None:
    """Read the programs out of models here, where a first start takes a process of some seconds for each."""
    from cellwork.home import Home
    from cellwork.models import package
    from cellwork.models.compiled import program as programs
    from cellwork.models.compiled.extract import extract

    for word in words:
        folder = Path(word.partition("=")[2])
        program = extract(package.load(folder), package.read(folder).columns)
        programs.write(Home(home).ensure().compiled() / f"{package.digest(folder)}.program", program)


class Served:
    """`cellwork serve` on one home."""

    def __init__(self, home: Path, words: list[str]) -> None:
        self.home, self.words, self.key = home, words, ""
        self.names = [word.partition("=")[0] for word in words]

    @contextmanager
    def running(self) -> Iterator[tuple[subprocess.Popen[str], float]]:
        """Yield the process and the seconds until every endpoint had answered."""
        began = time.perf_counter()
        command = [str(Path(sys.executable).with_name("cellwork")), "serve", *self.words, "--port", "0"]
        if not self.key and self.words:
            command += ["--new-key", "bench"]
        environment = {**os.environ, "CELLWORK_HOME": str(self.home)}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                if "--new-key" in command:
                    self.key = process.stdout.readline().strip()
                address = next(line for line in process.stderr if "serves on" in line).rpartition(" ")[2].strip()
                self._ask_all(address)
                yield process, time.perf_counter() - began
            finally:
                process.terminate()
                process.communicate(timeout=120)

    def _ask_all(self, address: str) -> None:
        end, headers = time.monotonic() + 600, {"authorization": f"Bearer {self.key}"} if self.key else {}
        with httpx.Client(base_url=address, trust_env=False, timeout=600, headers=headers) as client:
            while not _is_ready(client):
                assert time.monotonic() < end, "the service did not start"
                time.sleep(0.02)
            for name in self.names:
                client.post(f"/predict/{name}", json=BODY).raise_for_status()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def memory(pid: int) -> list[tuple[str, float]]:
    """Return what each process of a tree is and its proportional share of memory, in MB."""
    found, left = [], [pid]
    while left:
        one = left.pop()
        words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        line = next(
            line for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")
        )
        found.append((_kind([word.decode() for word in words]), int(line.split()[1]) / 1024))
        left += [int(p) for f in Path(f"/proc/{one}/task").glob("*/children") for p in f.read_text().split()]
    return found


def _kind(words: list[str]) -> str:
    for part, kind in (("keeper", "the log's keeper"), ("--worker", "the service")):
        if any(part in word for word in words):
            return kind
    return "the command" if "serve" in words else "a model's child"


def told(title: str, processes: list[tuple[str, float]]) -> None:
    kinds = dict.fromkeys(kind for kind, _ in processes)
    each = {kind: [size for other, size in processes if other == kind] for kind in kinds}
    parts = ", ".join(
        f"{kind} {statistics.mean(sizes):.0f}{f' (x{len(sizes)})' if len(sizes) > 1 else ''}"
        for kind, sizes in each.items()
    )
    print(f"| {title} | {sum(size for _, size in processes):.0f} | {parts} |", flush=True)


def main(count: int, rounds: int) -> None:
    print(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        few, many = save_models(folder / "few", FEW), save_models(folder / "many", count)
        slow = save_models(folder / "slow", FEW, compiles=False)
        measured: list[tuple[str, list[tuple[str, float]]]] = []
        for title, words in (("no model", []), (f"{FEW} models", few), (f"{count} models", many), (f"{FEW} models of scikit-learn's own", slow)):  # fmt: skip
            served = Served(folder / title.replace(" ", "-"), list(words))
            if len(words) > FEW:
                read_out(words, served.home)
            with served.running() as (_, first):
                pass
            times = []
            for _ in range(rounds):
                with served.running() as (process, seconds):
                    times.append(seconds)
                    time.sleep(2)
                    at_rest: Any = memory(process.pid)
            measured.append((title, at_rest))
            told_first = f"first start {first:.1f} s, " if len(words) <= FEW else ""
            print(f"{title}: {told_first}started again {statistics.median(times):.2f} s", flush=True)
        print("\n| a home with | MB in all | MB by process |\n| --- | ---: | --- |")
        for title, processes in measured:
            told(title, processes)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
