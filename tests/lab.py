"""Lab as a person uses it in Chromium: open a notebook, run its cells, see which of them show an error."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from browsing import SLOW
from running import Platform

if TYPE_CHECKING:
    from playwright.sync_api import Page

RAISED = re.compile(
    r"Traceback \(most recent call last\)|(?:^|\n)\s*(?:[\w.]*(?:Error|Exception|Exit|Interrupt|BadInput|NotFound|Refused|Conflict|Unavailable))\b:? "
)
"""How IPython ends or begins what a raised error prints."""


def workspace(platform: Platform) -> Path:
    return platform.home / "work"


def open_notebook(page: Page, platform: Platform, path: str) -> None:
    """Open a notebook in Lab and wait until its kernel is there."""
    page.goto(f"{platform.url}/user/{platform.user}/lab/workspaces/test-{time.time_ns()}/tree/{path}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.wait_for_selector(".jp-NotebookPanel-toolbar [data-status='idle']", timeout=SLOW)


def run_all(page: Page, done: Callable[[], object], seconds: float = 120, *, ended: bool = True) -> None:
    """Press the menu's Run All Cells until `done` and, if asked, no cell runs; while the kernel's session is being attached Lab drops cells without a word.

    Where its list of sessions came before the new one was in it, Lab gives each cell a kernel of its own instead: such a run is none.
    A press too many runs the cells once more and builds a panel anew, which forgets what was chosen in it meanwhile.
    """
    end = time.monotonic() + seconds
    while not done() or (ended and "*" in _prompts(page)) or scattered(_prompts(page)):
        assert time.monotonic() < end, (
            f"nothing came of Run All Cells in {seconds} s: {page.inner_text('.jp-Notebook')}"
        )
        if page.locator(".jp-Dialog").count():  # a slow server, a changed file: Lab asks, a person presses the button
            page.locator(".jp-Dialog button.jp-mod-accept").last.click()
        elif "*" not in _prompts(page):
            _press_run_all(page)
        page.wait_for_timeout(1000)


def _press_run_all(page: Page) -> None:
    """Press the menu's entry; a dialog that opens meanwhile keeps the press from it, and is looked at first then."""
    from playwright.sync_api import TimeoutError

    with contextlib.suppress(TimeoutError):
        page.click("#jp-MainMenu .lm-MenuBar-itemLabel:text-is('Run')", timeout=10_000)
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')", timeout=10_000)


def _prompts(page: Page) -> list[str]:
    """Return what stands beside each code cell: a number, a star while it waits or runs, or nothing."""
    return [text.strip(" []:\n") for text in page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()]


def scattered(prompts: list[str]) -> bool:
    """Return whether one of the cells with these prompts ran without having followed the one above it in the same kernel."""
    numbers = [int(prompt) if prompt.isdecimal() else 0 for prompt in prompts if prompt != "*"]
    ran = numbers[: max((place + 1 for place, number in enumerate(numbers) if number), default=0)]
    return any(number != ran[0] + place for place, number in enumerate(ran))


def failure(page: Page) -> str:
    """Return the errors that cells show, if any; Lab shows an error as one, or, like a warning, as what went to stderr."""
    errors = page.locator(".jp-OutputArea-output[data-mime-type*='jupyter.error']").all_inner_texts()
    written = page.locator(".jp-OutputArea-output[data-mime-type*='jupyter.stderr']").all_inner_texts()
    return "\n".join([*errors, *(text for text in written if RAISED.search(text))])


def a_notebook(*sources: str) -> dict[str, Any]:
    """Return a notebook of code cells with these sources, as JSON."""
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
        for k, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
