"""Secrets over HTTP."""

from __future__ import annotations

from cellwork.client.base import Connection
from cellwork.wire.secrets import Mask, Secret, SecretRequest, SecretValue


class Secrets:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def put(self, project: str, name: str, request: SecretRequest) -> Secret:
        return self._to.call("cellwork", "PUT", f"/api/v1/secrets/{project}/{name}", Secret, request)

    def read(self, project: str, name: str, *, as_of: str = "") -> SecretValue:
        """Return the value; with `as_of` (ISO 8601) the one that held then."""
        return self._to.call("cellwork", "GET", f"/api/v1/secrets/{project}/{name}", SecretValue, as_of=as_of)

    def remove(self, project: str, name: str) -> None:
        self._to.raw("cellwork", "DELETE", f"/api/v1/secrets/{project}/{name}")

    def masks(self, project: str, principal: str) -> list[Mask]:
        """Return every value that `principal` could use in `project`, old ones too; for services that hide them."""
        return self._to.call("cellwork", "GET", f"/api/v1/masks/{project}/{principal}", list[Mask])

    def list(self, project: str) -> list[Secret]:
        return self._to.call("cellwork", "GET", f"/api/v1/secrets/{project}", list[Secret])
