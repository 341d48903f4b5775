"""Who may log in. `personal` trust: one user, one random password in a 0600 file, read at each login. `team`: see `logins`."""

from __future__ import annotations

from pathlib import Path
from secrets import compare_digest
from typing import Any

from jupyterhub.auth import Authenticator
from traitlets import Unicode

from cellwork import files
from cellwork.settings import Settings
from cellwork_hub.config.logins import set_team
from cellwork_hub.preparation import one_user

NOTICE = (
    "This platform runs in <b>personal</b> trust: one user, one account of the machine. "
    "It promises no secrecy between notebooks and services. The password: <code>cellwork user password</code>"
)


class OneUser(Authenticator):  # type: ignore[misc]
    """Lets exactly one name in. JupyterHub's shared password lets whoever knows it in under every name."""

    only = Unicode(config=True, help="The name of the one user.")
    password_file = Unicode(config=True, help="The file with the password.")

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        right = files.read_secret(Path(self.password_file))
        same = compare_digest(data.get("password", "").encode(), right.encode())
        name: str = self.normalize_username(data.get("username", ""))
        return name if same and name == self.only else None


WELCOME = 'Your first time here, or a new password? <a href="/hub/welcome">Use your one-time code</a>.'


def set_users(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    c.JupyterHub.template_paths = [str(Path(__file__).parent / "templates")]
    if settings.trust == "team":
        set_team(c, settings, ports)
        c.JupyterHub.template_vars = {"announcement_login": WELCOME} if settings.login == "password" else {}
        return
    name = one_user(settings)
    c.JupyterHub.authenticator_class = OneUser
    c.OneUser.only = name
    c.OneUser.password_file = str(settings.folder.secret("password"))
    c.Authenticator.allowed_users = {name}
    c.Authenticator.any_allow_config = True
    c.JupyterHub.template_vars = {"announcement_login": NOTICE}
