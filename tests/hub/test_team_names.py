"""Names of people, and which logins `team` trust takes: hostile names never meet another's, a shared password is refused."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import command
from team_world import TRUST

from cellwork import ids
from cellwork.errors import BadInput, CellworkError, Refused
from cellwork.settings import Settings
from cellwork_hub import doctor, passwords
from cellwork_hub.config import logins
from cellwork_hub.config.team import OwnPassword

HOSTILE = [
    "", ".", "..", "a/b", "../bob", "a\\b", "bob ", " bob", "bob\n", "bob\0", "-bob", "bob-", "a--b", "Bob", "BOB", "bób", "bοb", "b\u200dob",
    "\u212aate", "ﬁnn", "ß", "İstanbul", "%62ob", "b%6fb", "bob%00", "~bob", "bob@x", "a_b", "a.b", "a+b", "1bob", "x" * 33, "x" * 10_000, "con*", "$(id)",
    "{username}", "bob;rm", "admin", "root", "hub", "jobs", "services", "user", "api", "none", "self",
]  # fmt: skip
"""Each reads, folds, decodes, expands or shortens to something else somewhere."""
TEXTS = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=40), st.from_regex(r"[a-z][a-z0-9-]{0,34}", fullmatch=True)
)


def accepted(name: str) -> bool:
    try:
        return ids.user(name) == name
    except BadInput:
        return False


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused(name: str) -> None:
    assert not accepted(name)
    if (
        name.strip().lower() != "bob"
    ):  # the login form takes blanks and ASCII capitals for what they are: the same person's
        known = OwnPassword()
        assert not known.validate_username(known.normalize_username(name.strip()))


@settings(max_examples=500, deadline=None)
@given(TEXTS, TEXTS)
def test_two_names_that_are_accepted_never_meet_in_a_folder_a_volume_a_server_or_an_address(one: str, two: str) -> None:
    """Whatever a file system, an engine, a cluster or a browser makes of a name, an accepted one comes out as it was."""
    from jupyterhub.slugs import safe_slug

    if not (accepted(one) and accepted(two)):
        return
    for made in (
        str.casefold,
        str.upper,
        quote,
        unquote,
        safe_slug,
        lambda n: Path("/users", n).name,
        lambda n: f"jupyter-{n}--x",
    ):
        assert (made(one) == made(two)) == (one == two)
    assert quote(one) == unquote(one) == one.casefold() == one
    assert one not in (".", "..")
    assert len(one) <= 32


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_login_form_makes_no_name_into_another_persons(name: str) -> None:
    known = OwnPassword()
    made = known.normalize_username(name.strip())
    if known.validate_username(made):
        assert made == name.strip().lower()
        assert name.strip().isascii()


@pytest.mark.parametrize(
    "path",
    [
        "jupyterhub.auth.DummyAuthenticator",
        "jupyterhub.auth.NullAuthenticator",
        "jupyterhub.authenticators.shared.SharedPasswordAuthenticator",
    ],
)
def test_a_login_that_lets_anyone_in_as_anyone_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused, match=r"with one password or none.*each user has a credential"):
        logins.check_login(Settings(home=tmp_path, trust="team", login=path))


def test_the_start_is_refused_with_a_shared_password_and_nothing_is_made(tmp_path: Path) -> None:
    refused = command(tmp_path / "home", "up", **TRUST, CELLWORK_LOGIN="jupyterhub.auth.DummyAuthenticator")
    assert refused.returncode == 3
    assert "lets anyone in under any name" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "home" / "run" / "pids.json").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"login": "nothing"}, "is no login"),
        ({"login": "os.path"}, "is no login"),
        ({"login": "oidc"}, "oidc_issuer"),
        ({"login": "oidc", "oidc_issuer": "http://x", "oidc_client_id": "y"}, "write it there, mode 0600"),
        ({"token_cache_seconds": 300}, "keeps a revoked token alive"),
    ],
)
def test_what_breaks_the_promises_of_team_trust_is_named_before_a_start(
    tmp_path: Path, values: dict[str, object], words: str
) -> None:
    with pytest.raises(CellworkError, match=words):
        doctor.can_start_team(Settings(home=tmp_path, trust="team", **values))


def test_an_authenticator_of_the_hub_is_taken_for_who_somebody_is_and_nothing_else(tmp_path: Path) -> None:
    chosen = logins.check_login(Settings(home=tmp_path, trust="team", login="jupyterhub.auth.PAMAuthenticator"))
    known = chosen()
    assert chosen.__name__ == "PAMAuthenticator"
    assert known.normalize_username("Kate") == "kate"
    assert known.normalize_username("\u212aate") == "\u212aate"
    assert not known.validate_username("\u212aate")


def test_a_weak_password_is_refused_and_never_repeated() -> None:
    for password in ("", "short", "aaaaaaaaaaaaaa", "adaadaadaada1", "x" * 1000):
        with pytest.raises(BadInput) as caught:
            passwords.check_strength(password, "ada")
        assert not password or password not in str(caught.value)
    passwords.check_strength("correct horse battery", "ada")


def test_a_stored_password_is_a_salted_argon2id_hash_and_matches_only_itself() -> None:
    one, two = passwords.hashed("a long pass phrase"), passwords.hashed("a long pass phrase")
    assert one != two
    assert one.startswith("$argon2id$")
    assert passwords.matches(one, "a long pass phrase")
    for stored, password in ((one, "a long pass phrasE"), ("", "a long pass phrase"), ("broken", "x"), ("", "")):
        assert not passwords.matches(stored, password)


def test_guesses_wait_longer_and_longer_by_name_and_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords.time, "monotonic", lambda: 1000.0)
    throttle = passwords.Throttle(most=3)
    for _ in range(passwords.FREE):
        throttle.check("ada", "here")
        throttle.wrong("ada", "here")
    with pytest.raises(CellworkError, match="try again in"):
        throttle.check("ada", "here")
    throttle.check("ada", "elsewhere")
    throttle.right("ada", "here")
    throttle.check("ada", "here")
    for number in range(100):
        throttle.wrong(f"name{number}", "here")
    assert len(throttle._wrong) <= 3
