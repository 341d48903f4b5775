"""Memory and time of dashboards with many viewers, on a platform that runs: CELLWORK_HOME=… python bench/dashboards.py [VIEWERS] [PAGE]

All viewers ask for the page at one moment, as tabs do; the memory of Voila and all that it started is looked at until each has the whole page and the
last kernel has ended: the highest is the peak. What is left then is the memory of so many viewers who read. Memory is proportional
(PSS): what processes share is counted once. Before that, one reader opens each page a few times in Chromium, which tells when it
first paints something and when the page is whole.
"""

from __future__ import annotations

import re
import shutil
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from cellwork import files
from cellwork.cli import show
from cellwork_hub import supervisor
from cellwork_hub.context import Context

PATIENCE_SECONDS = 120.0
OPENED = 7
"""How often a page is opened in Chromium, after a first time that fills the browser's cache."""
PAINTED = """() => [
  performance.getEntriesByName('first-contentful-paint')[0].startTime,
  performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd
]"""


def pss(process: psutil.Process) -> int:
    """Return the proportional memory of a process in bytes; 0 if it has ended."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+)", text, re.M)
    return int(found[1]) * 1024 if found else 0


def family(pid: int) -> list[psutil.Process]:
    head = psutil.Process(pid)
    return [head, *head.children(recursive=True)]


class Looking(threading.Thread):
    """Looks at the family of `pid` until it is stopped; keeps the most memory and the most processes that it saw."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.memory, self.processes, self.over = pid, 0, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            found = family(self.pid)
            self.memory, self.processes = max(self.memory, sum(map(pss, found))), max(self.processes, len(found))


def page(url: str, headers: dict[str, str]) -> tuple[float, float]:
    """Open the page as a tab does; return the seconds to its first byte and to its last."""
    start = time.perf_counter()
    with httpx.stream("GET", url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False) as answer:
        parts = answer.iter_bytes()
        whole = next(parts)
        first = time.perf_counter() - start
        whole += b"".join(parts)
        answer.raise_for_status()
    assert b"cellwork-needs-no-kernel" in whole, whole[-2000:]
    return first, time.perf_counter() - start


def paints(url: str, headers: dict[str, str], names: list[str]) -> list[tuple[str, float, float, float]]:
    """Return, a page of Voila each: seconds to the first paint (median, longest) and to the whole page (median)."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_context(extra_http_headers=headers).new_page()
        for name in names:
            took = []
            for _ in range(OPENED + 1):
                tab.goto(f"{url}/{name}", wait_until="load", timeout=PATIENCE_SECONDS * 1000)
                took.append(tab.evaluate(PAINTED))
                time.sleep(2)  # the next warm kernel comes
            first, whole = zip(*took[1:], strict=True)
            found.append((name, statistics.median(first) / 1000, max(first) / 1000, statistics.median(whole) / 1000))
        browser.close()
    return found


def main(viewers: int = 10, name: str = "model.ipynb") -> None:
    context = Context.load()
    board = supervisor.read_board(context.home)
    assert board
    [voila] = [service.pid for service in board.services if service.name == "voila"]
    url = f"{context.public_url}/services/dashboards/voila/render/{name}"
    headers = {"authorization": f"Bearer {files.read_secret(context.home.secret('cli-token'))}"}
    root, pages = url.rpartition("/")[0], ["overview.ipynb", "model.ipynb", "jobs.ipynb", "features.ipynb"]
    show.table(paints(root, headers, pages), ("page", "first paint s", "longest s", "whole page s"))
    before, at_first = sum(map(pss, family(voila))), len(family(voila))
    looking = Looking(voila)
    looking.start()
    with ThreadPoolExecutor(viewers) as tabs:
        took = list(tabs.map(lambda _: page(url, headers), range(viewers)))
    whole = time.monotonic()
    while len(family(voila)) > at_first and time.monotonic() - whole < PATIENCE_SECONDS:
        time.sleep(0.1)
    ended, left = time.monotonic() - whole, len(family(voila)) - at_first
    looking.over.set()
    looking.join()
    time.sleep(3)  # warm kernels that take the place of those used
    rows = [
        (f"MB of all at the peak, {viewers} viewers at one moment", looking.memory / 1e6),
        (f"MB of all while {viewers} viewers read", sum(map(pss, family(voila))) / 1e6),
        ("MB of all before (a warm kernel a page)", before / 1e6),
        ("kernels and helpers at the peak, beyond those before", float(looking.processes - at_first)),
        ("median seconds to a whole page", statistics.median(last for _, last in took)), ("longest", max(last for _, last in took)),
        ("seconds from the last page to the last kernel's end", ended), ("kernels left", float(left)),
    ]  # fmt: skip
    show.table(rows, ("what", "measured"))


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, str), sys.argv[1:], strict=False)))  # type: ignore[arg-type]
