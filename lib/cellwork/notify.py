"""Tell somebody outside: a signed webhook, or a mail. Used by every service that has something to say; each keeps what waits itself.

A webhook's body is JSON, signed with HMAC-SHA256 (header ``x-cellwork-signature``) by a secret of this installation; it is never
redirected, takes no proxy from the environment, and is over within `SECONDS` of knowing its receiver's address, however that answers. Whoever is told twice is told the same `id`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import smtplib
from collections.abc import Sequence
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cellwork import files
from cellwork.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from cellwork.home import Home

SECONDS = 10
"""A webhook's from begin to end; a mail server's for each of its answers."""
FIRST_WAIT, MOST_WAIT = 2_000_000, 3600 * 1_000_000
"""Microseconds between tries, doubled each time."""
MOST_TRIES = 12


def check_address(url: str) -> None:
    """Raise BadInput unless a webhook can be sent to `url`: HTTP with a host, a port that is one, and no password in it."""
    import httpx

    try:
        read = httpx.URL(url)
        good = bool(
            re.fullmatch(r"https?://[^\s/?#@]+([/?]\S*)?", url, re.IGNORECASE)
            and read.host
            and urlsplit(url).hostname
            and (read.port is None or 0 < read.port < 65_536)
        )
    except (httpx.InvalidURL, ValueError):
        good = False
    if not good:
        raise BadInput("webhook", ascii(url)[1:-1][:200], "is not an address of HTTP", "write https://host/path, without a password in it")  # fmt: skip


def check_mail(address: str) -> None:
    """Raise BadInput unless `address` is one person's."""
    if not re.fullmatch(r"[^\s@<>,;]+@[^\s@<>,;]+", address):
        raise BadInput("mail", address[:200], "is not an address", "write name@host")


def host(url: str) -> str:
    """Return the host and port that `url` names, however odd it is: what may be said of it, for its path may hold a secret."""
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]


def post(home: Home, url: str, body: dict[str, Any]) -> None:
    """Send `body` to `url`.

    Raises
    ------
    Unavailable
        It did not arrive, or was not answered with success within `SECONDS`.
    """
    import asyncio

    import httpx
    import msgspec

    try:
        check_address(url)
    except BadInput as error:
        raise Unavailable("webhook", host(url), error.verdict, error.way_out) from None
    data = msgspec.json.encode(body)
    signature = hmac.new(signing_key(home).encode(), data, hashlib.sha256).hexdigest()
    headers = {"content-type": "application/json", "x-cellwork-signature": f"sha256={signature}"}
    try:
        status = asyncio.run(_status(url, data, headers))
    except TimeoutError:
        raise Unavailable("webhook", host(url), f"did not answer within {SECONDS} seconds", "look at its log") from None
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable("webhook", host(url), f"did not answer: {error}", "look at its log") from None
    if not httpx.codes.is_success(status):
        raise Unavailable("webhook", host(url), f"answered {status}", "look at its log")


async def _status(url: str, data: bytes, headers: dict[str, str]) -> int:
    """Return the status of the answer; a client's own timeout is of each read, and an answer may drip for ever."""
    import asyncio

    import httpx

    async with (
        asyncio.timeout(SECONDS),
        httpx.AsyncClient(timeout=None, trust_env=False) as client,
        client.stream("POST", url, content=data, headers=headers, follow_redirects=False) as answer,
    ):
        return answer.status_code


def signing_key(home: Home) -> str:
    """Return the secret that webhooks are signed with; made when it is first needed."""
    path = home.secret("webhook-key")
    if not path.exists():
        files.write_once(path, secrets.token_hex(32), mode=0o600)
    return files.read_secret(path)


def mail(server: str, sender: str, people: Sequence[str], *, id: str, subject: str, text: str) -> None:
    """Send a mail through `server` (host:port).

    Raises
    ------
    Unavailable
        No server is set, or it did not take the mail.
    """
    if not server:
        raise Unavailable("mail server", "", "is not set", "set CELLWORK_MAIL_SERVER to host:port")
    message = EmailMessage()
    message["Subject"] = subject
    message["From"], message["To"] = sender, ", ".join(people)
    message["Message-ID"] = f"<{id}@cellwork>"
    message.set_content(text)
    machine, _, port = server.partition(":")
    try:
        with smtplib.SMTP(machine, int(port or 25), timeout=SECONDS) as opened:
            opened.send_message(message)
    except (OSError, ValueError, smtplib.SMTPException) as error:
        raise Unavailable("mail server", server, f"did not take the mail: {error}", "look at its log") from None


def wait(tries: int) -> int | None:
    """Return how many microseconds to wait after so many tries that failed; None to give up."""
    return None if tries >= MOST_TRIES else min(FIRST_WAIT * 2 ** (tries - 1), MOST_WAIT)
