"""Who calls: the hub's tokens become Principals. Default deny: what the hub does not know is nobody.

With `config` the only module that knows JupyterHub.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from typing import Any

import httpx
from starlette.types import Scope

from cellwork import errors, scopes
from cellwork.wire.records import Principal

NOBODY = Principal(kind="nobody", name="anonymous")
FRESH_SECONDS = 0.2
"""How old the hub's answer may be when a caller is about to be refused by it."""
HUB_REFRESH_SECONDS = 1
"""In `team` trust: how long the hub itself trusts what the accounts said of a user."""
SETTLE_SECONDS = HUB_REFRESH_SECONDS + 2 * FRESH_SECONDS
"""After that, who was granted something is not refused for not having it, by any service."""


class HubTokens:
    """Check bearer tokens with the hub; answers are kept for `cache_seconds`, refusals too, at most `most` of them."""

    def __init__(
        self, hub_api: str, token: str, *, cache_seconds: int = 30, most: int = 10_000, needs: Collection[str] = ()
    ) -> None:
        """Where there is something in `needs`, who has none of these scopes of the hub is nobody, though the name is known."""
        self.hub_api, self.token, self.cache_seconds, self.most = hub_api, token, cache_seconds, most
        self.needs = frozenset(needs)
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._http: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope) -> Principal:
        """Return who calls: whom a `Gate` in front has already found or finds now, else whose bearer token it is.

        With ``cellwork.fresh`` in the scope the hub is asked again, unless it was within `FRESH_SECONDS`.
        """
        if found := scope.get("cellwork.principal"):
            return found  # type: ignore[no-any-return]
        if login := scope.get("cellwork.login"):
            return await login(scope)  # type: ignore[no-any-return]
        token = bearer(scope)
        return await self.principal(token, fresh=scope.get("cellwork.fresh", False)) if token else NOBODY

    async def principal(
        self, token: str, *, session: str = "", browser: bool = False, fresh: bool = False
    ) -> Principal:
        """Return whose token it is; one that was given to a browser counts only in its hub session `session`.

        Raises
        ------
        Unavailable
            The hub does not answer and the token is not known.
        """
        key = hashlib.sha256(f"{session}\0{browser}\0{token}".encode()).digest()
        known = self._known.get(key)
        left = known[0] - time.monotonic() if known else 0.0
        if known and left > (max(0.0, self.cache_seconds - FRESH_SECONDS) if fresh else 0):
            return known[1]
        principal = await self._ask(token, session, browser)
        if len(self._known) >= self.most:
            self._known.clear()
        self._known[key] = (time.monotonic() + self.cache_seconds, principal)
        return principal

    def forget(self, token: str) -> None:
        for browser in (False, True):
            self._known.pop(hashlib.sha256(f"\0{browser}\0{token}".encode()).digest(), None)

    async def _ask(self, token: str, session: str, browser: bool) -> Principal:
        if self._http is None:
            self._http = httpx.AsyncClient(timeout=10, trust_env=False)
        try:
            answer = await self._http.get(f"{self.hub_api}/user", headers={"authorization": f"token {token}"})
        except httpx.TransportError as error:
            raise errors.Unavailable(
                "hub", self.hub_api, f"does not answer ({type(error).__name__})", "try again in some seconds"
            ) from None
        if answer.status_code in (401, 403, 404):
            return NOBODY
        if answer.status_code != 200:
            raise errors.Unavailable("hub", self.hub_api, f"answered {answer.status_code}", "try again in some seconds")
        model = answer.json()
        if browser and (not session or model.get("session_id") != session):
            return NOBODY
        if self.needs and not self.needs & set(model.get("scopes", [])):
            return Principal(kind="nobody", name=model["name"])
        return _principal(model, browser)


def _principal(model: dict[str, Any], browser: bool) -> Principal:
    granted = scopes.from_hub(model.get("scopes", []))
    return Principal(
        kind="service" if model.get("kind") == "service" else "user",
        name=model["name"],
        scopes=granted & scopes.READ if browser else granted,
        groups=frozenset(model.get("groups", [])),
        browser=browser,
    )


def bearer(scope: Scope) -> str:
    """Return the token of the Authorization header, never one of the URL."""
    for key, value in scope["headers"]:
        if key == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if kind.lower() in ("bearer", "token") else ""
    return ""
