"""Which login `team` trust uses: the platform's own passwords, an OpenID Connect provider, or any JupyterHub authenticator
that gives each person a credential of their own. A password that several people share is refused."""

from __future__ import annotations

import importlib
from typing import Any

import httpx
from jupyterhub.auth import Authenticator, DummyAuthenticator, NullAuthenticator
from jupyterhub.authenticators.shared import SharedPasswordAuthenticator

from cellwork import files
from cellwork.errors import BadInput, Refused, Unavailable
from cellwork.settings import Settings
from cellwork.wire.users import External
from cellwork_hub.auth import HUB_REFRESH_SECONDS
from cellwork_hub.config.team import Known, OwnPassword

SHARED = (DummyAuthenticator, NullAuthenticator, SharedPasswordAuthenticator)
DISCOVERY = "/.well-known/openid-configuration"


def check_login(settings: Settings) -> type[Authenticator]:
    """Return the class of the login that `settings` choose.

    Raises
    ------
    Refused
        It would let anyone in as anyone, or a secret is missing.
    BadInput
        There is no such login.
    """
    if settings.login == "password":
        return OwnPassword
    if settings.login == "oidc":
        for name in ("oidc_issuer", "oidc_client_id"):
            if not getattr(settings, name):
                raise BadInput(
                    f"setting {name}", "", "is empty", "the provider tells it when you register the platform"
                )
        if not settings.folder.secret("oidc-client-secret").exists():
            path = settings.folder.secret("oidc-client-secret")
            raise Refused("secret of the identity provider", path, "is not there", "write it there, mode 0600")
        return _provider()
    chosen = _load(settings.login)
    if issubclass(chosen, SHARED):
        raise Refused(
            "setting login",
            settings.login,
            "lets anyone in under any name, with one password or none",
            "in team trust each user has a credential: use password, oidc, or an authenticator that has that",
        )
    return vouched(chosen)


def _load(path: str) -> type[Authenticator]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Authenticator)):
        way_out = (
            "use password, oidc, or the path of a JupyterHub authenticator, such as ldapauthenticator.LDAPAuthenticator"
        )
        raise BadInput("setting login", path, "is no login", way_out)
    return found


def vouched(chosen: type[Authenticator]) -> type[Authenticator]:
    """Return `chosen` with its word taken for who somebody is, and the accounts' for everything else."""

    class Vouched(Known, chosen):  # type: ignore[misc]
        async def authenticate(self, handler: Any, data: Any = None, **kwargs: Any) -> dict[str, Any] | None:
            found = await chosen.authenticate(self, handler, data, **kwargs)
            if not found:
                return None
            name = found if isinstance(found, str) else str(found["name"])
            return await self.prove(External(subject=f"{chosen.__name__}#{name}", name=name), handler)

    Vouched.__name__ = Vouched.__qualname__ = chosen.__name__
    return Vouched


def _provider() -> type[Authenticator]:
    try:
        from oauthenticator.generic import GenericOAuthenticator
    except ModuleNotFoundError:
        raise Unavailable("login", "oidc", "needs a package", "run: pip install 'cellwork[oidc]'") from None

    class OpenID(Known, GenericOAuthenticator):  # type: ignore[misc]
        issuer = groups_claim = name_claim = ""

        async def authenticate(self, handler: Any, data: Any = None, **kwargs: Any) -> dict[str, Any] | None:
            found = await GenericOAuthenticator.authenticate(self, handler, data, **kwargs)
            claims = found["auth_state"][self.user_auth_state_key]
            groups = claims.get(self.groups_claim) or []
            return await self.prove(
                External(
                    subject=f"{self.issuer}#{claims['sub']}",
                    name=str(claims.get(self.name_claim, "")),
                    groups=[str(group) for group in groups] if isinstance(groups, list) else [],
                ),
                handler,
            )

    return OpenID


def set_team(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    chosen = check_login(settings)
    c.JupyterHub.authenticator_class = chosen
    c.Known.platform_url = f"http://127.0.0.1:{ports['cellwork']}"
    c.Known.platform_token = files.read_secret(settings.folder.secret("login-token"))
    c.Authenticator.allow_all = True  # whom the platform service lets in
    c.Authenticator.manage_groups = True
    c.Authenticator.auth_refresh_age = HUB_REFRESH_SECONDS
    c.Authenticator.auth_refresh_strict = True
    c.Authenticator.refresh_pre_spawn = True
    c.JupyterHub.token_expires_in_max_seconds = 365 * 86_400
    if settings.login == "oidc":
        _set_provider(c, settings, chosen)


def _set_provider(c: Any, settings: Settings, chosen: Any) -> None:
    found = discover(settings.oidc_issuer)
    chosen.issuer, chosen.groups_claim = settings.oidc_issuer, settings.oidc_groups_claim
    chosen.name_claim = settings.oidc_name_claim
    c.GenericOAuthenticator.login_service = settings.oidc_title
    c.GenericOAuthenticator.client_id = settings.oidc_client_id
    c.GenericOAuthenticator.client_secret = files.read_secret(settings.folder.secret("oidc-client-secret"))
    c.GenericOAuthenticator.authorize_url = found["authorization_endpoint"]
    c.GenericOAuthenticator.token_url = found["token_endpoint"]
    c.GenericOAuthenticator.userdata_url = found["userinfo_endpoint"]
    c.GenericOAuthenticator.username_claim = "sub"  # what it is called here is the accounts' to say
    c.GenericOAuthenticator.auth_state_groups_key = lambda state: set()
    c.GenericOAuthenticator.scope = settings.oidc_scopes.split()


def discover(issuer: str) -> dict[str, Any]:
    """Return what the provider `issuer` says of its addresses.

    Raises
    ------
    Unavailable
        It does not answer, or it is another one.
    """
    try:
        answer = httpx.get(issuer.rstrip("/") + DISCOVERY, timeout=10, follow_redirects=True)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(
            "identity provider", issuer, f"does not answer as one ({error})", "check oidc_issuer"
        ) from None
    if found.get("issuer", "").rstrip("/") != issuer.rstrip("/"):
        raise Refused(
            "identity provider", issuer, f"says it is {found.get('issuer')!r}", "set oidc_issuer to that name"
        )
    return found
