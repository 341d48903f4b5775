"""One client a process and address: shared while it is open, replaced when somebody closed it."""

from __future__ import annotations

import pytest

from cellwork.client import connect


def test_a_closed_client_is_not_given_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLWORK_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CELLWORK_TOKEN", "nobody")
    first = connect()
    assert connect() is first
    first.close()
    again = connect()
    assert again is not first
    assert not again.closed
    again.close()
