"""A run's own credential: the hub mints it for the run's owner and life, and takes it back at the end. It is kept nowhere."""

from __future__ import annotations

import logging
from typing import Any

import httpx

from cellwork import scopes
from cellwork.errors import Refused, Unavailable
from cellwork_hub.context import SERVICES

log = logging.getLogger("cellwork.jobs")


class HubRunTokens:
    """Asks the hub's API as the jobs service."""

    def __init__(self, hub_api: str, token: str) -> None:
        self._http = httpx.Client(
            base_url=hub_api, headers={"authorization": f"token {token}"}, timeout=10, trust_env=False
        )

    def mint(self, owner: str, granted: frozenset[str], seconds: int, note: str) -> tuple[str, str]:
        """Return id and secret of a token with the scopes `granted` and access to the services.

        Raises
        ------
        Refused
            The hub does not know `owner`, or `owner` may not have these scopes.
        Unavailable
            The hub does not answer.
        """
        wanted = [*map(scopes.to_hub, sorted(granted)), *(f"access:services!service={name}" for name in SERVICES)]
        answer = self._send("POST", f"/users/{owner}/tokens", {"expires_in": seconds, "note": note, "scopes": wanted})
        if answer.status_code != 201:
            raise Refused(
                f"user {owner!r}",
                "",
                f"gets no token for a run: {_message(answer)}",
                "ask an admin for the roles, then start it again",
            )
        model = answer.json()
        return str(model["id"]), str(model["token"])

    def revoke(self, owner: str, token_id: str) -> None:
        """Take the token back; if the hub is away it ends by itself."""
        try:
            self._send("DELETE", f"/users/{owner}/tokens/{token_id}")
        except Unavailable as error:
            log.warning("token %s of %s is left to expire: %s", token_id, owner, error)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise Unavailable(
                "hub", self._http.base_url, f"does not answer ({type(error).__name__})", "try again in some seconds"
            ) from None
        if answer.status_code >= 500:
            raise Unavailable("hub", self._http.base_url, f"answered {answer.status_code}", "try again in some seconds")
        return answer


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("message", answer.status_code))
    except ValueError:
        return str(answer.status_code)
