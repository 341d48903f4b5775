"""What `cellwork up` makes before anything starts: ports, secrets, the proxy's configuration. Called under the lock."""

from __future__ import annotations

import getpass
import json
import re
import secrets
import socket

import psutil

from cellwork import files
from cellwork.errors import BadInput, Conflict
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork_hub.context import SERVICES

INTERNAL = ("hub", "proxy-api", *SERVICES)
LOW, HIGH = 20_000, 30_000  # below the range from which the kernel takes ports for outgoing connections
TOKENS = (*SERVICES, "runner", "cli", "login")


def ports(settings: Settings) -> dict[str, int]:
    """Return the port of every part: those of the last time where they are free, and write them down.

    Raises
    ------
    Conflict
        The public port is taken by another program.
    """
    home = settings.folder
    chosen = {"public": public_port(settings, known_ports(home).get("public", 0))}
    for name in INTERNAL:
        last = known_ports(home).get(name, 0)
        chosen[name] = (
            last if last and last not in chosen.values() and is_free("127.0.0.1", last) else _any_port(chosen)
        )
    files.write(home.ports(), json.dumps(chosen), mode=0o600)
    return chosen


def known_ports(home: Home) -> dict[str, int]:
    """Return the ports of the last time; none if there was none, or if its file is torn."""
    try:
        return {str(name): int(port) for name, port in json.loads(home.ports().read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def public_port(settings: Settings, last: int) -> int:
    """Return the public port: the one that is set, or for 0 the last one or any that is free."""
    if settings.port == 0:
        return last if last and is_free(settings.host, last) else _any_port({})
    if not is_free(settings.host, settings.port):
        raise Conflict(
            "port",
            settings.port,
            f"is taken by {holder(settings.port)}",
            f"choose another: CELLWORK_PORT={settings.port + 1} cellwork up (0 takes a free one)",
        )
    return settings.port


def is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Return who listens on `port`, as far as this account may know."""
    try:
        pids = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
        return (
            ", ".join(f"{psutil.Process(pid).name()} (pid {pid})" for pid in sorted(p for p in pids if p))
            or "another program"
        )
    except psutil.Error:
        return "another program"


def _any_port(taken: dict[str, int]) -> int:
    for _ in range(1000):
        port = LOW + secrets.randbelow(HIGH - LOW)
        if port not in taken.values() and is_free("127.0.0.1", port):
            return port
    raise Conflict("ports", f"{LOW} to {HIGH}", "are all taken", "end some programs that listen there")


def make_secrets(home: Home) -> None:
    """Make what is missing of the secrets, each random and readable by this account only; what is there is kept."""
    wanted = {f"{name}-token": secrets.token_hex(32) for name in TOKENS}
    wanted |= {"hub-cookie": secrets.token_hex(32), "proxy-token": secrets.token_hex(32), "password": new_password()}
    for name, value in wanted.items():
        path = home.secret(name)
        if not path.exists():
            files.write(path, value, mode=0o600)
        files.read_secret(path)


def new_password() -> str:
    """Return 80 random bits in letters and digits that can't be mistaken for each other."""
    return "-".join("".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(4)) for _ in range(4))


def one_user(settings: Settings) -> str:
    """Return the name of the one user of `personal` trust."""
    if settings.user:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", settings.user):
            raise BadInput("setting user", settings.user, "is not a user name", "use a-z first, then a-z, 0-9, _ and -")
        return settings.user
    account = re.sub(r"[^a-z0-9_-]", "-", getpass.getuser().lower()).lstrip("-_0123456789")
    return account[:32] or "jovyan"


def write_proxy(settings: Settings, chosen: dict[str, int], inside: str = "") -> None:
    """Write traefik's static configuration; its routes are the hub's to write, fresh with each start of the platform.

    `inside` is this machine's address in the containers' network, where there is one: the same door, for user servers. A new route holds at once; traefik's
    default lets it wait for two seconds behind another one, and a server's start waits for its route.
    """
    home = settings.folder
    rules = home.proxy() / "rules.toml"
    rules.parent.mkdir(mode=0o700, exist_ok=True)
    files.write(rules, "", mode=0o600)
    public = f"{settings.host}:{chosen['public']}"
    second = own_door(settings, inside)
    text = f"""
[global]
checkNewVersion = false
sendAnonymousUsage = false
[log]
level = "WARN"
[api]
[ping]
entryPoint = "auth_api"
{_door("http", public)}
{_door("containers", f"{second}:{chosen['public']}") if second else ""}
[entryPoints.auth_api]
address = "127.0.0.1:{chosen["proxy-api"]}"
[entryPoints.auth_api.http]
aliasHeadersStrategy = "delete"
[providers]
providersThrottleDuration = "0s"
[providers.file]
filename = "{rules}"
watch = true
"""
    files.write(home.proxy() / "traefik.toml", text, mode=0o600)


def own_door(settings: Settings, inside: str) -> str:
    """Return `inside`, this machine's address in the containers' network, unless the public door stands there anyway."""
    return "" if settings.host in ("", "0.0.0.0", "::") else inside


def _door(name: str, address: str) -> str:
    """Return an entry point of traefik at which paths that a service could read in two ways are refused."""
    return f"""
[entryPoints.{name}]
address = "{address}"
[entryPoints.{name}.transport.respondingTimeouts]
readTimeout = "600s"
[entryPoints.{name}.http]
aliasHeadersStrategy = "delete"
[entryPoints.{name}.http.encodedCharacters]
allowEncodedSlash = false
allowEncodedBackSlash = false
allowEncodedNullCharacter = false
"""
