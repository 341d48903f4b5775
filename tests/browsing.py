"""A Chromium as a person has it: a fresh profile, logged in, and a list of whatever its pages ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from running import Platform

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]  # fmt: skip
SLOW = 90_000
"""Milliseconds that a busy machine may take for what is quick otherwise."""


@contextmanager
def logged_in(
    platform: Platform, chromium: str, profile: Path, *, width: int = 1280, height: int = 900
) -> Iterator[Page]:
    """Yield a page of a fresh profile, logged in as a person does it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=FLAGS, viewport={"width": width, "height": height}
        )
        try:
            browser.set_default_timeout(SLOW)
            page = browser.pages[0]
            page.goto(f"{platform.url}/hub/login")
            page.fill("#username_input", platform.user)
            page.fill("#password_input", platform.password)
            page.click("#login_submit")
            page.wait_for_url("**/user/**", timeout=SLOW)
            yield page
        finally:
            browser.close()


def saved(notebook: Path) -> dict[str, Any]:
    """Return a notebook as it lies on disk; empty while Lab writes it, who empties the file first."""
    try:
        found: dict[str, Any] = json.loads(notebook.read_text())
    except json.JSONDecodeError:
        return {}
    return found


def asked_for(page: Page) -> list[str]:
    """Return a list that grows with the address of each request, also of those that never leave the browser."""
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("websocket", lambda socket: seen.append(socket.url.replace("ws", "http", 1)))
    return seen
