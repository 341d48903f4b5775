"""How soon a user's server forgets a token that the hub has taken back: as soon as the services do."""

from __future__ import annotations

from typing import Any

from cellwork.settings import Settings


def set_revocation(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    c.Spawner.args = [*c.Spawner.args, f"--HubOAuth.cache_max_age={settings.token_cache_seconds}"]
