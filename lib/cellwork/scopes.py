"""Scopes, and the roles that are sets of them. JupyterHub carries them as ``custom:cellwork:<scope>``."""

from __future__ import annotations

SUBJECTS = ("data", "features", "models", "endpoints", "jobs", "monitors")
READ = frozenset(f"{subject}:read" for subject in SUBJECTS)
WRITE = frozenset(f"{subject}:write" for subject in SUBJECTS)
SPECIAL = frozenset(
    {
        "features:apply",
        "models:promote",
        "endpoints:predict",
        "holdout:evaluate",
        "secrets:read",
        "events:write",
        "runs:execute",
        "admin",
    }
)
ALL = READ | WRITE | SPECIAL

ROLES = {
    "viewer": READ,
    "author": READ | WRITE | {"endpoints:predict", "holdout:evaluate"},
    "deployer": READ | WRITE | {"endpoints:predict", "holdout:evaluate", "features:apply", "models:promote"},
    "admin": ALL - {"events:write", "runs:execute"},
}
"""Role -> scopes. `events:write` and `runs:execute` are for services and runners only."""

HUB_PREFIX = "custom:cellwork:"


def to_hub(scope: str) -> str:
    return HUB_PREFIX + scope


def from_hub(scopes: list[str] | set[str]) -> frozenset[str]:
    return frozenset(s.removeprefix(HUB_PREFIX) for s in scopes if s.startswith(HUB_PREFIX)) & ALL
