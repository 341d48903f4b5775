"""A running inference service forgets a subject: in its log's quick half, its table and its submissions, and says so to who asks again."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving_world as world

from cellwork import ids
from cellwork.client import Client
from cellwork.errors import Conflict, Refused
from cellwork.serving import segments
from cellwork.wire.endpoints import Deploy, Forget, Request, Row, Submission, Submit
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

WHO, OTHER = "user-bob-4711", "user-ada-1"
WISH = Forget(erasure=ids.of_key("ers", "test"), value=WHO, names=["plan"])


def _request(who: str, key: str = "", *, rows: int = 1) -> Request:
    """The model's text column is what names the subject here."""
    return Request(rows=[Row(features={"visits": float(k), "plan": who}) for k in range(rows)], id=key)


def _plainly(client: Client, who: str) -> str:
    """Ask with nothing but features: the answer goes through a segment."""
    body = {"rows": [{"features": {"visits": 3.0, "plan": who}}]}
    headers = {"authorization": "Bearer deployer"}
    answer = httpx.post(
        f"{client.connection.url}/predict/{world.MODEL}", json=body, headers=headers, trust_env=False, timeout=60
    )
    return str(answer.raise_for_status().json()["outputs"][0]["id"])


def _ended(client: Client, made: Submission) -> Submission:
    end = time.monotonic() + 90
    while (found := client.endpoints.submission(made.id)).state == "submitted":
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def _tells(home: Path, *wanted: str) -> list[str]:
    """Return the files under `home` that hold one of the words."""
    found = []
    for path in home.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the log's keeper works on
            if path.is_file() and any(word.encode() in path.read_bytes() for word in wanted):
                found.append(str(path))
    return found


@pytest.fixture
def client(tmp_path: Path) -> Any:
    context, folders = world.context(tmp_path / "home"), world.Folders()
    folders.add(world.saved(1, tmp_path / "1"), 1)

    def service() -> FrontDoor:
        return build(context, authorise=world.authorise, registry=folders, lookup=lambda *_: {})

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        yield client


def test_a_running_service_forgets_a_subject_and_says_so_to_who_asks_again(client: Client, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for who in (WHO, OTHER):
        client.endpoints.predict(world.MODEL, _request(who, f"order of {who}", rows=2))
        _plainly(client, who)
    done = [_ended(client, client.endpoints.submit(world.MODEL, Submit(request=_request(who)))) for who in (WHO, OTHER)]
    before = client.endpoints.predictions(world.MODEL)
    assert _tells(home, WHO)
    with pytest.raises(Refused):
        client.endpoints.forget("shop", WISH)
    with world.caller(client.connection.url, "admin") as admin:
        told = admin.endpoints.forget("shop", WISH)
        assert admin.endpoints.forget("shop", WISH) == told
    assert (len(told.predictions), told.submissions, told.left) == (4, 1, [])
    after = client.endpoints.predictions(world.MODEL)
    assert [each for each in after if not each.erased] == [each for each in before if each.features["plan"] == OTHER]
    assert len(after) == len(before)
    assert segments.listing(home / "predictions" / "segments")
    assert _tells(home, WHO) == []
    with pytest.raises(Conflict, match="erased since"):
        client.endpoints.predict(world.MODEL, _request(WHO, f"order of {WHO}", rows=2))
    again = client.endpoints.predict(world.MODEL, _request(OTHER, f"order of {OTHER}", rows=2))
    assert [each.repeated for each in again.outputs] == [True, True]
    gone, kept = (client.endpoints.submission(each.id) for each in done)
    assert (gone.state, gone.answer, kept) == ("erased", None, done[1])
    assert gone.problem is not None
    assert WISH.erasure in gone.problem.verdict
    later = _plainly(client, OTHER)
    assert client.endpoints.prediction(later).features["plan"] == OTHER
