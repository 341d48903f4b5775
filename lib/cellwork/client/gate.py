"""The gate over HTTP: its list, rules, overrides, promotion and the way back."""

from __future__ import annotations

from collections.abc import Iterator

from cellwork.client.base import Connection
from cellwork.wire.gate import (
    Gate,
    KeptRules,
    Override,
    OverrideRequest,
    Promoted,
    Promotion,
    Rollback,
    Rules,
    RulesRequest,
    Trusted,
    TrustRequest,
)


class Gates:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def check(self, name: str, version: int, promoter: str = "") -> Gate:
        """What the gate says about a version of the model `project/name`, line by line; where `promoter` brings it to traffic, if named."""
        return self._to.call("cellwork", "GET", f"/api/v1/gate/{name}/{version}", Gate, **{"for": promoter})

    def promote(self, name: str, version: int, reason: str = "") -> Promoted:
        """Move `champion` to `version` if the gate passes; the old champion becomes `previous`."""
        return self._to.call(
            "cellwork", "POST", "/api/v1/gate", Promoted, Promotion(name=name, version=version, reason=reason)
        )

    def rollback(self, name: str, version: int = 0, reason: str = "") -> Promoted:
        """Make the champion before `version` (default: before the present one) the champion again."""
        request = Rollback(name=name, version=version, reason=reason)
        return self._to.call("cellwork", "POST", "/api/v1/gate/rollback", Promoted, request)

    def override(self, name: str, version: int, check: str, reason: str) -> Override:
        """Let `version` pass the line `check`, which blocks, for what it says now."""
        request = OverrideRequest(name=name, version=version, check=check, reason=reason)
        return self._to.call("cellwork", "POST", "/api/v1/gate/overrides", Override, request)

    def trust(self, name: str, version: int, reason: str = "") -> list[Trusted]:
        """Let the code that `version` brings run on the platform."""
        request = TrustRequest(name=name, version=version, reason=reason)
        return self._to.call("cellwork", "POST", "/api/v1/gate/trust", list[Trusted], request)

    def code(self, name: str, version: int) -> dict[str, str]:
        """Path -> source of what `version` brings and would run."""
        return self._to.call("cellwork", "GET", f"/api/v1/gate/{name}/{version}/code", dict[str, str])

    def moves(self, name: str) -> Iterator[Promoted]:
        """The moves of the model's champion, newest first."""
        return self._to.listing("cellwork", "/api/v1/gate/moves", Promoted, name=name)

    def rules(self, project: str) -> KeptRules:
        return self._to.call("cellwork", "GET", "/api/v1/gate/rules", KeptRules, project=project)

    def set_rules(self, project: str, rules: Rules, *, owner: str = "", contact: str = "") -> KeptRules:
        request = RulesRequest(project=project, rules=rules, owner=owner, contact=contact)
        return self._to.call("cellwork", "PUT", "/api/v1/gate/rules", KeptRules, request)
