"""Who may log in under `team` trust: everybody with a credential of their own, as the platform service knows them now.

The accounts lie with the platform service; the hub asks it at each login and, before it answers for a user, again every
`HUB_REFRESH_SECONDS`. So a role, a membership or a removal reaches the hub within that time, and each service within its token
cache. If the platform service is away, what the hub knew last holds: nothing can have been changed meanwhile. What a
removal or a new password makes void is deleted here, so that it stays void.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
from jupyterhub import orm
from jupyterhub.auth import Authenticator
from jupyterhub.handlers.base import BaseHandler
from tornado.web import HTTPError
from traitlets import Unicode

from cellwork import errors, ids, scopes
from cellwork.client.base import problem
from cellwork.wire import PREFIX
from cellwork.wire.users import Credential, External, Redeem, Standing

LOGINS = f"{PREFIX['cellwork']}/api/v1/logins"
STATUS = {errors.Refused: 403, errors.BadInput: 422, errors.TooBusy: 429, errors.Unavailable: 503}


class Accounts:
    """The platform service's word on users, asked with the hub's own token."""

    def __init__(self, url: str, token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False)

    async def check(self, credential: Credential) -> Standing:
        return await self._ask("POST", LOGINS, credential)

    async def redeem(self, asked: Redeem) -> Standing:
        return await self._ask("POST", f"{LOGINS}/code", asked)

    async def arrive(self, external: External) -> Standing:
        return await self._ask("POST", f"{LOGINS}/external", external)

    async def standing(self, name: str) -> Standing:
        return await self._ask("GET", f"{LOGINS}/{name}")

    async def _ask(self, method: str, path: str, body: Any = None) -> Standing:
        content = None if body is None else msgspec.json.encode(body)
        try:
            answer = await self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise errors.Unavailable("platform", "", f"does not answer ({type(error).__name__})", "try again") from None
        if answer.is_success:
            return msgspec.json.decode(answer.content, type=Standing)
        raise problem(answer, "cellwork")


class Known(Authenticator):  # type: ignore[misc]
    """What every login under `team` trust has in common: groups, roles and validity come from the accounts."""

    platform_url = Unicode(config=True, help="Where the platform service listens.")
    platform_token = Unicode(config=True, help="The hub's token for it.")

    @property
    def accounts(self) -> Accounts:
        if not hasattr(self, "_accounts"):
            self._accounts = Accounts(self.platform_url, self.platform_token)
        return self._accounts

    def normalize_username(self, username: str) -> str:
        """ASCII letters only lose their case: two names that are written differently elsewhere must not become one."""
        return username.lower() if username.isascii() else username

    def validate_username(self, username: str) -> bool:
        try:
            return bool(ids.user(username))
        except errors.BadInput:
            return False

    async def refresh_user(self, user: Any, handler: Any = None) -> Any:
        try:
            standing = await self.accounts.standing(user.name)
        except errors.Unavailable as error:
            self.log.warning("what is known of %s stays: %s", user.name, error)
            return True
        revoked = revoke(user, standing)
        if not standing.active:
            self._stop_servers(user, handler)
            return False
        if revoked:
            return False
        same = set(standing.groups) == {group.name for group in user.orm_user.groups} and not user.admin
        return True if same else model(standing)

    def _stop_servers(self, user: Any, handler: Any) -> None:
        for name, spawner in user.spawners.items():
            if handler and spawner.ready and not spawner.pending:
                task = asyncio.ensure_future(handler.stop_single_user(user, server_name=name))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def let_in(self, handler: Any, standing: Standing) -> dict[str, Any] | None:
        """Return the hub's model of whom the platform let in; what was void before this login is gone first."""
        if not standing.active:
            return None
        known = handler.find_user(standing.name)
        if known is not None:
            revoke(known, standing)
        return model(standing)

    async def prove(self, external: External, handler: Any) -> dict[str, Any] | None:
        """Let in whom another system vouches for, or say why not."""
        try:
            return await self.let_in(handler, await self.accounts.arrive(external))
        except errors.CellworkError as error:
            raise said(error) from None


async def lost(authenticator: Any, name: str, mounted: Collection[str]) -> str:
    """Return why a server of `name` with the tables of the projects `mounted` may not go on; empty if it may, or nobody knows."""
    if not isinstance(authenticator, Known):
        return ""
    try:
        standing = await authenticator.accounts.standing(name)
    except errors.CellworkError:
        return ""
    if not standing.active:
        return "its owner was removed"
    gone = sorted(set(mounted) - scopes.projects(standing.groups))
    return f"its owner is no member any more of {', '.join(gone)}" if gone else ""


def model(standing: Standing) -> dict[str, Any]:
    return {"name": standing.name, "groups": standing.groups, "admin": False}


def said(error: errors.CellworkError) -> HTTPError:
    """Return the hub's form of an error, which its pages show."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    text = f"{error.subject} {error.verdict}; {error.way_out}".strip("; ")
    return HTTPError(status, text[:1].upper() + text[1:])


def revoke(user: Any, standing: Standing) -> bool:
    """Delete what is void of `user`: tokens and codes from before, and the cookie of its browsers; return whether there was any."""
    owner, db, found = user.orm_user, user.db, []
    for token in list(owner.api_tokens):
        after = max(standing.tokens_after, standing.logins_after if token.session_id else 0)
        if _seconds(token.created) < after:
            found.append(token)
    void_logins = max(standing.logins_after, standing.tokens_after)
    if not standing.active:
        found = list(owner.api_tokens)
    if found:
        found += list(db.query(orm.OAuthCode).filter(orm.OAuthCode.user_id == owner.id))
    cookie = hashlib.sha256(f"{owner.name}\0{void_logins}".encode()).hexdigest()
    stale = void_logins > _seconds(owner.created) and owner.cookie_id != cookie
    if stale:
        owner.cookie_id = cookie  # signed by the hub when it is given out; here it only names a generation
    for row in found:
        db.delete(row)
    if found or stale:
        db.commit()
    return bool(found or stale)


def _seconds(at: datetime) -> float:
    return at.replace(tzinfo=UTC).timestamp()


class OwnPassword(Known):
    """The hub's own form: name and password, which the platform service compares with their hash."""

    async def authenticate(self, handler: Any, data: dict[str, str]) -> dict[str, Any] | None:
        name = self.normalize_username(data.get("username", "").strip())
        if not self.validate_username(name):
            return None
        credential = Credential(name=name, password=data.get("password", ""), address=handler.request.remote_ip)
        try:
            return await self.let_in(handler, await self.accounts.check(credential))
        except errors.Refused:
            return None
        except errors.CellworkError as error:
            raise said(error) from None

    def get_handlers(self, app: Any) -> list[tuple[str, Any]]:
        return [*super().get_handlers(app), (r"/welcome", Welcome)]


class Welcome(BaseHandler):  # type: ignore[misc]
    """Where a one-time code becomes a password. The code comes behind the # of the link, which no server or log sees."""

    async def get(self) -> None:
        await self._page()

    async def post(self) -> None:
        name, code, password, again = (
            self.get_body_argument(field, "", strip=field in ("username", "code"))
            for field in ("username", "code", "password", "again")
        )
        known: OwnPassword = self.authenticator
        name = known.normalize_username(name)
        try:
            if password != again:
                raise errors.BadInput("passwords", "", "are not the same", "type the new one twice")
            if not known.validate_username(name):
                raise errors.Refused("name", "", "is nobody's here", "look at it again in your invitation")
            asked = Redeem(name=name, code=code, password=password, address=self.request.remote_ip)
            standing = await known.accounts.redeem(asked)
        except errors.CellworkError as error:
            refusal = said(error)
            self.set_status(refusal.status_code)
            await self._page(refusal.log_message or "", name)
            return
        user = await self.auth_to_user(await known.let_in(self, standing))
        self.set_login_cookie(user)
        self.redirect(self.hub.base_url + "home")

    async def _page(self, error: str = "", username: str = "") -> None:
        self.set_header("Referrer-Policy", "no-referrer")
        xsrf = self.xsrf_token.decode("ascii")
        self.finish(await self.render_template("welcome.html", login_error=error, username=username, xsrf=xsrf))
