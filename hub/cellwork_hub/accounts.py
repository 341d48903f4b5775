"""What a change of a user does at the hub: a new password puts browsers out, a removal stops servers."""

from __future__ import annotations

import os
import secrets
import signal
import time

import httpx

from cellwork import files
from cellwork.errors import Unavailable
from cellwork.settings import Settings
from cellwork.wire.records import ServiceStatus
from cellwork_hub import preparation, supervisor
from cellwork_hub.context import Context


def reset_password(chosen: Settings) -> None:
    """Make a new password and a new cookie secret. If the platform runs, browsers' tokens are revoked and the hub starts again.

    Raises
    ------
    Unavailable
        The hub did not answer, or did not come back in time; the password is the new one all the same.
    """
    home = chosen.folder.ensure()
    files.write(home.secret("password"), preparation.new_password(), mode=0o600)
    files.write(home.secret("hub-cookie"), secrets.token_hex(32), mode=0o600)
    board = supervisor.running(home)
    if board:
        try:
            revoke_browsers(Context.load(), preparation.one_user(chosen))
        except httpx.HTTPError as error:
            verdict = f"does not answer ({type(error).__name__}): the new password holds, and tokens of browsers are not revoked yet"
            way_out = "run it again when the hub is back (cellwork status says so)"
            raise Unavailable("hub", "", verdict, way_out) from None
        restart_hub(chosen)


def revoke_browsers(context: Context, user: str) -> None:
    """Revoke the tokens that `user`'s browsers got for the services; tokens of servers and programs stay."""
    headers = {"authorization": f"token {context.token('cli')}"}
    with httpx.Client(base_url=context.hub_api, headers=headers, timeout=10, trust_env=False) as hub:
        answer = hub.get(f"/users/{user}/tokens")
        if answer.status_code == 404:  # never logged in
            return
        answer.raise_for_status()
        for token in answer.json()["api_tokens"]:
            if token["session_id"]:
                answer = hub.delete(f"/users/{user}/tokens/{token['id']}")
                if answer.status_code != 404:  # the hub ends a session's tokens together
                    answer.raise_for_status()


def stop_servers(user: str) -> int:
    """Stop every server of `user` through the hub; return how many ran. Its tokens are void already, for the hub asks the accounts."""
    context = Context.load()
    headers = {"authorization": f"token {context.token('cli')}"}
    with httpx.Client(base_url=context.hub_api, headers=headers, timeout=60, trust_env=False) as hub:
        answer = hub.get(f"/users/{user}")
        if answer.status_code == 404:  # never logged in
            return 0
        answer.raise_for_status()
        running = [name for name, server in answer.json()["servers"].items() if server["ready"] or server["pending"]]
        for name in running:
            stopped = hub.delete(f"/users/{user}/servers/{name}" if name else f"/users/{user}/server")
            if stopped.status_code not in (202, 204, 404):
                stopped.raise_for_status()
        return len(running)


def restart_hub(chosen: Settings) -> None:
    """End the hub, if it has a process; the supervisor starts it again. Return when another one is ready."""
    before = _hub(chosen)
    if before.pid:  # number 0 is whoever asks, with all of its process group
        os.kill(before.pid, signal.SIGTERM)
    end = time.monotonic() + chosen.ready_seconds
    while time.monotonic() < end:
        now = _hub(chosen)
        if now.pid != before.pid and now.state == "ready":
            return
        time.sleep(0.1)
    raise Unavailable("hub", "", "did not come back", f"look into {chosen.folder.log('hub')}")


def _hub(chosen: Settings) -> ServiceStatus:
    board = supervisor.running(chosen.folder)
    found = next((service for service in board.services if service.name == "hub"), None) if board else None
    if found is None:
        raise Unavailable("platform", chosen.home, "does not run", "start it with: cellwork up")
    return found
