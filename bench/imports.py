"""What `import cellwork` and `cellwork --help` cost, beside an empty interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15
RSS = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
CASES = {
    "empty interpreter": [sys.executable, "-c", RSS],
    "import cellwork": [sys.executable, "-c", f"import cellwork; {RSS}"],
    "import cellwork.client": [sys.executable, "-c", f"import cellwork.client; {RSS}"],
    "cellwork --help": [str(Path(sys.executable).with_name("cellwork")), "--help"],
}


def measure(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, answer.stdout.strip()


def main() -> None:
    results: dict[str, list[tuple[float, str]]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, command in CASES.items():
            results[name].append(measure(command))
    empty = statistics.median(seconds for seconds, _ in results["empty interpreter"])
    base = int(results["empty interpreter"][0][1])
    print("| case | median s | above empty s | ratio | MB above empty |\n| --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        seconds = statistics.median(s for s, _ in runs)
        memory = f"{(int(runs[0][1]) - base) / 1024:.0f}" if runs[0][1].isdigit() else "-"
        print(f"| {name} | {seconds:.3f} | {seconds - empty:.3f} | {seconds / empty:.1f} | {memory} |")


if __name__ == "__main__":
    main()
