"""One connection: authorisation, origin, bounded retries, problems back into errors."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from cellwork import errors, files, settings
from cellwork import origin as origins
from cellwork.wire import PREFIX, Problem
from cellwork.wire.origin import HEADER
from cellwork.wire.records import Event

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
ERRORS = {
    kind.__name__: kind
    for kind in (
        errors.BadInput,
        errors.NotFound,
        errors.Refused,
        errors.Conflict,
        errors.TooLarge,
        errors.TooBusy,
        errors.Unavailable,
    )
}
BY_STATUS = {
    400: errors.BadInput, 401: errors.Refused, 403: errors.Refused, 404: errors.NotFound, 409: errors.Conflict,
    413: errors.TooLarge, 422: errors.BadInput, 429: errors.TooBusy, 502: errors.Unavailable, 503: errors.Unavailable, 504: errors.Unavailable,
}  # fmt: skip
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


def address() -> tuple[str, str]:
    """Return (url, token) for this process; see `cellwork.client.connect`."""
    url, token = os.environ.get("CELLWORK_URL", ""), os.environ.get("CELLWORK_TOKEN", "")
    token = os.environ.get("HTTP_X_CELLWORK_TOKEN", token)  # in a dashboard: of whoever opened the page
    if url and token:
        return url.rstrip("/"), token
    home = settings.load()[0].folder
    try:
        ports = json.loads(home.ports().read_text())
        return f"http://{ports.get('host', '127.0.0.1')}:{ports['public']}", files.read_secret(home.secret("cli-token"))
    except (OSError, KeyError, ValueError):
        raise errors.Unavailable(
            "platform",
            home.root,
            "does not run from here",
            "start it with: cellwork up (or set CELLWORK_URL and CELLWORK_TOKEN)",
        ) from None


class Connection:
    def __init__(self, url: str, token: str, *, timeout: float = 600.0, attempts: int = 5) -> None:
        import httpx

        self.url, self.attempts = url.rstrip("/"), attempts
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.http: httpx.Client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=10),
            trust_env=False,
            verify=self.url.startswith("https"),  # reading certificates takes longer than what is asked over http
        )

    @property
    def public_url(self) -> str:
        """Where browsers find the platform: in a container, which reaches it by another way, as CELLWORK_PUBLIC_URL says."""
        return os.environ.get("CELLWORK_PUBLIC_URL", "").rstrip("/") or self.url

    def close(self) -> None:
        self.http.close()

    def call(self, service: str, method: str, path: str, answer: type[T], body: Any = None, /, **query: Any) -> T:
        """Send `body` as JSON and return the answer decoded as `answer`."""
        content = None if body is None else msgspec.json.encode(body)
        return msgspec.json.decode(self.raw(service, method, path, content, **query).content, type=answer)

    def raw(
        self,
        service: str,
        method: str,
        path: str,
        content: bytes | None = None,
        kind: str = "application/json",
        /,
        **query: Any,
    ) -> httpx.Response:
        """Send bytes and return the answer; what is safe to repeat is repeated while the service is unavailable."""
        import httpx

        headers = {HEADER: msgspec.json.encode(origins.gather()).decode()}
        if content is not None:
            headers["content-type"] = kind
        parameters = {key: value for key, value in query.items() if value not in (None, "")}
        for attempt in range(self.attempts):
            last = attempt == self.attempts - 1
            try:
                response = self.http.request(
                    method, PREFIX[service] + path, content=content, params=parameters, headers=headers
                )
            except httpx.ConnectError as error:
                if last:
                    raise errors.Unavailable(
                        "service", service, f"does not answer at {self.url} ({error})", "look at: cellwork status"
                    ) from None
            except httpx.TransportError as error:
                if last or method not in IDEMPOTENT:
                    raise errors.Unavailable(
                        "service", service, f"broke off the answer ({error})", "look at: cellwork status"
                    ) from None
            else:
                if response.is_success:
                    return response
                if (
                    last
                    or response.status_code not in (502, 503, 504)
                    or (method not in IDEMPOTENT and response.status_code != 502)
                ):
                    raise problem(response, service)
            time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def save(self, service: str, path: str, file: Path, /, **query: Any) -> None:
        """Write the answer to a GET into `file`, whole or not at all, piece by piece; one that breaks off is asked for again."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            for attempt in range(self.attempts):
                if self._saved(service, path, part, query, last=attempt == self.attempts - 1):
                    part.replace(file)
                    return
                time.sleep(0.2 * 2**attempt)
        finally:
            part.unlink(missing_ok=True)

    def _saved(self, service: str, path: str, part: Path, query: dict[str, Any], *, last: bool) -> bool:
        """Return whether all of the answer is in `part`; False means: ask again. Raises what the service says, or Unavailable when `last`."""
        import httpx

        headers = {HEADER: msgspec.json.encode(origins.gather()).decode()}
        try:
            with part.open("wb") as out, self.http.stream("GET", PREFIX[service] + path, params=query, headers=headers) as answer:  # fmt: skip
                if answer.is_success:
                    for piece in answer.iter_bytes():
                        out.write(piece)
                    return True
                answer.read()
                if last or answer.status_code not in (502, 503, 504):
                    raise problem(answer, service)
        except httpx.TransportError as error:
            if last:
                raise errors.Unavailable(
                    "service", service, f"broke off the answer ({error})", "look at: cellwork status"
                ) from None
        return False

    def events(self, service: str, path: str, /, **query: Any) -> Iterator[Event]:
        """Yield the server-sent events of `path` until the service ends the stream or the connection breaks."""
        import httpx

        try:
            with self.http.stream("GET", PREFIX[service] + path, params=query, timeout=httpx.Timeout(10, read=60)) as answer:  # fmt: skip
                if not answer.is_success:
                    answer.read()
                    raise problem(answer, service)
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        yield msgspec.json.decode(line.removeprefix("data: "), type=Event)
        except httpx.ConnectError as error:
            raise errors.Unavailable(
                "service", service, f"does not answer at {self.url} ({error})", "look at: cellwork status"
            ) from None
        except httpx.TransportError:
            return

    def listing(self, service: str, path: str, row: type[T], **query: Any) -> Iterator[T]:
        """Yield the rows of a paged list, to its end: each answer is a JSON array, the next cursor a header."""
        cursor = ""
        while True:
            response = self.raw(service, "GET", path, cursor=cursor, **query)
            yield from msgspec.json.decode(response.content, type=list[row])  # type: ignore[valid-type]
            before, cursor = cursor, response.headers.get("x-next-cursor", "")
            if cursor in ("", before):
                return


def problem(response: httpx.Response, service: str) -> errors.CellworkError:
    """Return the error that an answer describes."""
    try:
        body = msgspec.json.decode(response.content, type=Problem)
        return ERRORS.get(body.type, BY_STATUS.get(response.status_code, errors.Unavailable))(
            body.subject, body.value, body.verdict, body.way_out
        )
    except msgspec.MsgspecError:
        kind = BY_STATUS.get(response.status_code, errors.Unavailable)
        return kind(
            "service", service, f"answered {response.status_code}{_words(response)}", "look at: cellwork status"
        )


def _words(response: httpx.Response) -> str:
    """Return what an answer that is not ours says (MLflow's have a `message`), in a line."""
    try:
        message = msgspec.json.decode(response.content, type=dict).get("message", "")
    except msgspec.MsgspecError:
        return ""
    return f": {str(message).strip().splitlines()[0][:300]}" if str(message).strip() else ""
