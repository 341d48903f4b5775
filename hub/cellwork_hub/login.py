"""A browser's way in: the hub's OAuth, and one sealed cookie a service. What comes by cookie may only read.

The cookie holds the hub's token for this service; it is worth nothing without the browser's hub session, so that a logout
there closes every service, and nothing after the token is revoked.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import msgspec
from cryptography.fernet import Fernet, InvalidToken
from starlette.types import Scope

from cellwork import errors
from cellwork.wire import PREFIX, Struct
from cellwork.wire.records import Principal
from cellwork_hub.auth import NOBODY, HubTokens, bearer
from cellwork_hub.context import Context
from cellwork_hub.route import Malformed

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOGIN_SECONDS = 600
SESSION_COOKIE = "jupyterhub-session-id"

Headers = list[tuple[str, str]]


class _Started(Struct):
    """A login that went to the hub: what must come back, and where to go then."""

    state: str
    next: str


class Login:
    """Makes principals of requests to `service`, by bearer token or cookie, and logs browsers in."""

    def __init__(
        self, service: str, hub_api: str, token: str, *, prefix: str = "", client_id: str = "", cache_seconds: int = 30
    ) -> None:
        """`prefix` and `client_id` are of what is no service of ours, such as a user's server."""
        self.service, self.hub_api, self.token = service, hub_api, token
        self.prefix, self.client_id = prefix or PREFIX[service], client_id or f"service-{service}"
        self.tokens = HubTokens(hub_api, token, cache_seconds=cache_seconds)
        self.cookie = f"cellwork-{service}"
        key = hashlib.sha256(f"cookie of {service}\0{token}".encode()).digest()
        self._seal = Fernet(base64.urlsafe_b64encode(key))

    @classmethod
    def of(cls, context: Context, service: str) -> Login:
        return cls(service, context.hub_api, context.token(service), cache_seconds=context.settings.token_cache_seconds)

    async def __call__(self, scope: Scope) -> Principal:
        """Return who calls. A cookie counts only in requests that our own pages make.

        Raises
        ------
        Refused
            The cookie is good, but another origin made the request.
        Unavailable
            The hub does not answer.
        """
        fresh = scope.get("cellwork.fresh", False)
        if sent := bearer(scope):
            return await self.tokens.principal(sent, fresh=fresh)
        cookies = _cookies(scope)
        token = self._open(cookies.get(self.cookie, ""), None)
        session = cookies.get(SESSION_COOKIE, "")
        if not token or not session:
            return NOBODY
        principal = await self.tokens.principal(token, session=session, browser=True, fresh=fresh)
        if principal.kind != "nobody":
            self._check_origin(scope)
        return principal

    def token_of(self, scope: Scope) -> str:
        """Return the token that a request carries, in a header or in our cookie; empty if there is none."""
        return bearer(scope) or self._open(_cookies(scope).get(self.cookie, ""), None)

    def _check_origin(self, scope: Scope) -> None:
        """Refuse what changes something, and every websocket, unless the browser says that a page of ours asks."""
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return
        origin, host = _header(scope, b"origin"), _header(scope, b"host")
        site, referer = _header(scope, b"sec-fetch-site"), _header(scope, b"referer")
        ours = bool(origin) and urlsplit(origin).netloc == host
        if (
            not ours
            or site not in ("", "same-origin")
            or (referer and not urlsplit(referer).path.startswith(self.prefix + "/"))
        ):
            raise errors.Refused(
                "request",
                origin or site,
                "does not come from a page of this service",
                "open the page at the platform's own address",
            )

    def wants_page(self, scope: Scope) -> bool:
        """Whether a person waits for a page, who can log in; a program gets 401."""
        accepts = "text/html" in _header(scope, b"accept")
        return scope["type"] == "http" and scope["method"] == "GET" and accepts and not bearer(scope)

    def to_hub(self, scope: Scope, path: str) -> Headers:
        """Return the headers that send a browser to the hub's login and back to `path`."""
        state = secrets.token_urlsafe(16)
        query = scope.get("query_string", b"").decode("latin-1")
        started = _Started(state=state, next=self.prefix + path + (f"?{query}" if query else ""))
        sealed = self._seal.encrypt(msgspec.json.encode(started)).decode()
        asked = urlencode(
            {
                "client_id": self.client_id,
                "redirect_uri": self._callback,
                "response_type": "code",
                "state": state,
            }
        )
        return [
            ("location", f"/hub/api/oauth2/authorize?{asked}"),
            ("set-cookie", self._set_cookie(scope, self._state_cookie(state), sealed, LOGIN_SECONDS)),
        ]

    async def from_hub(self, scope: Scope) -> Headers:
        """Return the headers that finish a login: the cookie, and the way to where the browser wanted to go.

        Raises
        ------
        Malformed
            The hub was not asked by this browser, or said no.
        """
        query = {key: values[0] for key, values in parse_qs(scope.get("query_string", b"").decode("latin-1")).items()}
        state, cookies = query.get("state", ""), _cookies(scope)
        name = self._state_cookie(state)
        opened = self._open(cookies.get(name, ""), LOGIN_SECONDS)
        started = msgspec.json.decode(opened, type=_Started) if opened else _Started(state="", next="")
        if "code" not in query or not state or not secrets.compare_digest(started.state, state):
            raise Malformed(
                "login",
                query.get("error", ""),
                "was not started by this browser, or too long ago",
                f"start again at {self.prefix}/",
            )
        token = await self._exchange(query["code"])
        principal = await self.tokens.principal(token, session=cookies.get(SESSION_COOKIE, ""), browser=True)
        if principal.kind == "nobody":
            raise Malformed("login", "", "is not known to the hub", "log in at the hub again")
        sealed = self._seal.encrypt(token.encode()).decode()
        return [
            ("location", started.next),
            ("set-cookie", self._set_cookie(scope, name, "", 0)),
            ("set-cookie", self._set_cookie(scope, self.cookie, sealed, None)),
        ]

    @property
    def _callback(self) -> str:
        return f"{self.prefix}/oauth_callback"

    def _state_cookie(self, state: str) -> str:
        return f"{self.cookie}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"

    async def _exchange(self, code: str) -> str:
        form = {
            "client_id": self.client_id,
            "client_secret": self.token,
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
        }
        try:
            async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
                answer = await http.post(f"{self.hub_api}/oauth2/token", data=form)
        except httpx.TransportError as error:
            raise errors.Unavailable(
                "hub", self.hub_api, f"does not answer ({type(error).__name__})", "try again in some seconds"
            ) from None
        if answer.status_code != 200:
            raise Malformed("login", answer.status_code, "is not accepted by the hub", f"start again at {self.prefix}/")
        return str(answer.json()["access_token"])

    def _open(self, sealed: str, seconds: int | None) -> str:
        try:
            return self._seal.decrypt(sealed.encode(), ttl=seconds).decode() if sealed else ""
        except (InvalidToken, UnicodeError):
            return ""

    def _set_cookie(self, scope: Scope, name: str, value: str, seconds: int | None) -> str:
        secure = "; Secure" if _header(scope, b"x-forwarded-proto") == "https" else ""
        age = "" if seconds is None else f"; Max-Age={seconds}"
        return f"{name}={value}; Path={self.prefix}/; HttpOnly; SameSite=Lax{age}{secure}"


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _cookies(scope: Scope) -> dict[str, str]:
    jar: dict[str, str] = {}
    for key, value in scope["headers"]:
        if key == b"cookie":
            for part in value.decode("latin-1").split(";"):
                try:
                    jar |= {name: morsel.value for name, morsel in SimpleCookie(part.strip()).items()}
                except CookieError:
                    continue
    return jar
