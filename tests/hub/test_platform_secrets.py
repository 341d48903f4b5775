"""Secrets over HTTP: sealed at rest, told to who may use them, in the audit, and never in a list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import raw_platform
from raw_platform import serving, state_in

from cellwork import clock
from cellwork.client import Client
from cellwork.errors import NotFound, Refused, Unavailable
from cellwork.wire.secrets import SecretRequest
from cellwork_hub.platform import secrets
from cellwork_hub.platform.state import State

VALUE = "correct horse battery"
USES = frozenset({"secrets:read", "secrets:write", "data:read"})


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    tokens = {"ada": USES, "bob": USES, "eve": frozenset({"data:read"}), "jobs": frozenset({"secrets:mask"})}
    monkeypatch.setattr(raw_platform, "TOKENS", tokens)
    return state_in(tmp_path, [secrets])


@pytest.fixture
def url(state: State) -> Iterator[str]:
    with serving(state, [secrets]) as url:
        yield url


def test_a_secret_is_its_owners_until_it_is_shared(url: str) -> None:
    ada, bob = Client(url, "ada").secrets, Client(url, "bob").secrets
    assert ada.put("shop", "db", SecretRequest(value=VALUE)).version == 1
    assert ada.put("shop", "db", SecretRequest(value=VALUE)).version == 1, "the same again"
    assert ada.read("shop", "db").value == VALUE
    with pytest.raises(NotFound, match="not yours"):
        bob.read("shop", "db")
    assert bob.list("shop") == []
    with pytest.raises(Refused, match="secret of ada"):
        bob.put("shop", "db", SecretRequest(value="another value"))
    with pytest.raises(Refused, match="secret of ada"):
        bob.remove("shop", "db")
    assert ada.put("shop", "db", SecretRequest(value=VALUE, shared=True)).version == 2
    assert bob.read("shop", "db").value == VALUE
    assert [(s.name, s.owner, s.shared) for s in bob.list("shop")] == [("db", "ada", True)]


def test_who_has_no_scope_for_secrets_gets_none_and_only_services_get_what_to_hide(url: str) -> None:
    Client(url, "ada").secrets.put("shop", "db", SecretRequest(value=VALUE, shared=True))
    for act in (lambda s: s.read("shop", "db"), lambda s: s.list("shop"), lambda s: s.masks("shop", "ada")):
        with pytest.raises(Refused):
            act(Client(url, "eve").secrets)
    with pytest.raises(Refused):
        Client(url, "ada").secrets.masks("shop", "ada")
    assert [mask.value for mask in Client(url, "jobs").secrets.masks("shop", "bob")] == [VALUE]


def test_a_run_that_has_begun_keeps_the_old_value_and_both_are_hidden(url: str) -> None:
    ada = Client(url, "ada").secrets
    ada.put("shop", "db", SecretRequest(value=VALUE))
    began = clock.now().isoformat()
    ada.put("shop", "db", SecretRequest(value="another value"))
    ada.put("shop", "later", SecretRequest(value="set afterwards"))
    assert (ada.read("shop", "db", as_of=began).value, ada.read("shop", "db").value) == (VALUE, "another value")
    with pytest.raises(NotFound, match="after this run began"):
        ada.read("shop", "later", as_of=began)
    ada.remove("shop", "db")
    with pytest.raises(NotFound):
        ada.read("shop", "db")
    masks = Client(url, "jobs").secrets.masks("shop", "ada")
    assert {mask.value for mask in masks} == {VALUE, "another value", "set afterwards"}
    assert ada.put("shop", "db", SecretRequest(value="a third value")).version == 3, "set again after it was removed"


def test_what_is_not_shared_any_more_is_read_by_its_owner_alone_at_whatever_time(url: str) -> None:
    ada, bob = Client(url, "ada").secrets, Client(url, "bob").secrets
    ada.put("shop", "db", SecretRequest(value="not yet shared"))
    before = clock.now().isoformat()
    ada.put("shop", "db", SecretRequest(value=VALUE, shared=True))
    shared = clock.now().isoformat()
    ada.put("shop", "db", SecretRequest(value="another value", shared=True))
    assert bob.read("shop", "db", as_of=shared).value == VALUE, "his run that had begun goes on"
    with pytest.raises(NotFound):
        bob.read("shop", "db", as_of=before)
    ada.put("shop", "db", SecretRequest(value="another value", shared=False))
    for as_of in (before, shared, clock.now().isoformat(), ""):
        with pytest.raises(NotFound, match="not yours"):
            bob.read("shop", "db", as_of=as_of)
    assert ada.read("shop", "db", as_of=shared).value == VALUE


def test_a_removed_secret_is_gone_at_whatever_time_also_when_another_takes_its_name(url: str) -> None:
    ada, bob = Client(url, "ada").secrets, Client(url, "bob").secrets
    ada.put("shop", "db", SecretRequest(value=VALUE, shared=True))
    shared = clock.now().isoformat()
    ada.put("shop", "db", SecretRequest(value=VALUE, shared=False))
    own = clock.now().isoformat()
    ada.remove("shop", "db")
    times = (shared, own)
    for reader, as_of in [(reader, as_of) for reader in (ada, bob) for as_of in times]:
        with pytest.raises(NotFound):
            reader.read("shop", "db", as_of=as_of)
    bob.put("shop", "db", SecretRequest(value="the one of bob", shared=True))
    for reader, as_of in [(reader, as_of) for reader in (ada, bob) for as_of in times]:
        with pytest.raises(NotFound):
            reader.read("shop", "db", as_of=as_of)
    assert ada.read("shop", "db", as_of=clock.now().isoformat()).value == "the one of bob"


def test_no_file_of_the_platform_and_no_audit_row_holds_a_value(url: str, state: State) -> None:
    ada = Client(url, "ada")
    ada.secrets.put("shop", "db", SecretRequest(value=VALUE))
    ada.secrets.read("shop", "db")
    rows = ada.records.audit()
    assert [row.action for row in rows] == ["secret.set", "secret.read"]
    assert VALUE not in str(rows)
    state.engine.dispose()
    for path in state.home.root.rglob("*"):
        assert path.is_dir() or VALUE.encode() not in path.read_bytes(), path
    assert state.home.secret("secrets-key").stat().st_mode & 0o077 == 0


def test_a_lost_key_is_said_and_a_new_key_beside_the_old_opens_both(url: str, state: State) -> None:
    from cryptography.fernet import Fernet

    ada, path = Client(url, "ada", timeout=60).secrets, state.home.secret("secrets-key")
    ada.put("shop", "db", SecretRequest(value=VALUE))
    old = path.read_bytes()
    path.write_bytes(Fernet.generate_key() + b"\n" + old)
    assert ada.read("shop", "db").value == VALUE
    path.write_bytes(Fernet.generate_key())
    with pytest.raises(Unavailable, match="sealed with another key"):
        secrets.read(state, _call())


def _call() -> raw_platform.Call:
    from cellwork.wire.origin import Origin
    from cellwork.wire.records import Principal

    ada = Principal(kind="user", name="ada", scopes=USES)
    return raw_platform.Call(ada, "req_1", Origin(), {"project": "shop", "name": "db"}, {}, None, {})
