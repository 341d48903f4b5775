"""Two people in Chromium, each with a browser profile of their own: invited by link, logged in, and each sees only their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import FLAGS, SLOW
from team_world import Team, pass_phrase

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(600)
Open = Callable[[str], Iterator["Page"]]


@contextmanager
def profile(chromium: str, folder: Path) -> Iterator[Page]:
    """Yield a page of a fresh browser profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(folder, executable_path=chromium, args=FLAGS)
        browser.set_default_timeout(SLOW)
        try:
            yield browser.pages[0]
        finally:
            browser.close()


def accept_invitation(page: Page, team: Team, name: str) -> None:
    """Do what an invited person does: open the link, type a password twice."""
    made = team.client().users.add(name)
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url + (request.headers.get("referer") or "")))
    page.goto(f"{team.url}/hub/welcome#{name}/{made.code}")
    assert page.input_value("#username_input") == name
    assert page.input_value("#code_input") == made.code
    assert made.code not in page.url  # nor in the browser's history
    page.fill("#password_input", pass_phrase(name))
    page.fill("#again_input", pass_phrase(name))
    page.click("#welcome_submit")
    page.wait_for_url("**/hub/home")
    assert not [url for url in seen if made.code in url]


def test_two_people_log_in_with_their_own_credentials_and_see_only_their_own(
    team: Team, chromium: str, tmp_path: Path
) -> None:
    for name, other in (("nora", "otto"), ("otto", "nora")):
        with profile(chromium, tmp_path / name) as page:
            accept_invitation(page, team, name)
            assert name in page.inner_text("#jupyterhub-logo ~ *, nav")
            for path in (f"/hub/spawn/{other}", f"/user/{other}/lab", f"/hub/api/users/{other}", "/hub/admin"):
                answer = page.goto(team.url + path)
                assert answer is not None
                assert answer.status in (403, 404, 424), path
            page.goto(f"{team.url}/services/mlflow/")
            page.wait_for_selector("text=Experiments")


def test_a_wrong_password_says_so_and_a_logout_closes_the_services(team: Team, chromium: str, tmp_path: Path) -> None:
    anna = team.people["anna"]
    with profile(chromium, tmp_path / "anna") as page:
        page.goto(f"{team.url}/hub/login?next=%2Fservices%2Fmlflow%2F")
        assert "Use your one-time code" in page.inner_text("body")
        for word in ("not her password", anna.password):
            page.fill("#username_input", "anna")
            page.fill("#password_input", word)
            page.click("#login_submit")
            if word != anna.password:
                page.wait_for_selector("text=Invalid username or password")
        page.wait_for_url("**/services/mlflow/**")
        page.goto(f"{team.url}/hub/logout")
        page.goto(f"{team.url}/services/mlflow/")
        page.wait_for_url("**/hub/login**")
