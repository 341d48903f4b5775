"""Who may use this server, asked of the hub again and again, and patiently.

Jupyter asks only when a connection to a kernel is opened; here an open one ends with the right to it. If the hub does not answer (it
is being started again), what is open stays open, and whom it knew a short while ago is let in.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tornado.web import HTTPError

LOOK_SECONDS = 15
PATIENT_SECONDS = 120
MOST = 1000
NOT_ALLOWED = 4403


def be_patient(auth: Any) -> None:
    """Make `auth`, the hub's checker of tokens, give its last answer again for a while when the hub does not give one."""
    ask = auth.user_for_token
    known: dict[tuple[str, str], tuple[float, Any]] = {}

    async def answer(token: str, use_cache: bool, session_id: str) -> Any:
        at, user = known.get((token, session_id), (0.0, None))
        try:
            user = await ask(token, use_cache, session_id=session_id, sync=False)
        except HTTPError:
            if user is None or time.monotonic() - at > PATIENT_SECONDS:
                raise
            return user
        if len(known) >= MOST:
            known.clear()
        known[token, session_id] = (time.monotonic(), user)
        return user

    def user_for_token(token: str, use_cache: bool = True, session_id: str = "", *, sync: bool = True) -> Any:
        return ask(token, use_cache, session_id=session_id) if sync else answer(token, use_cache, session_id)

    auth.user_for_token = user_for_token


async def watch(handler: Any) -> None:
    """Close `handler`, a websocket, when its token is void or opens this server no more; a server without a hub has nothing to ask."""
    auth = getattr(handler.identity_provider, "hub_auth", None)
    while auth is not None and handler.ws_connection is not None:
        await asyncio.sleep(max(1, min(LOOK_SECONDS, auth.cache_max_age)))
        if not await _may(handler, auth):
            handler.close(NOT_ALLOWED, "your login or token is void")
            return


async def _may(handler: Any, auth: Any) -> bool:
    token = auth.get_token(handler)
    try:
        user = await auth.user_for_token(token, session_id=auth.get_session_id(handler), sync=False) if token else None
    except HTTPError:
        return True
    return bool(user and auth.check_scopes(auth.access_scopes, user))
