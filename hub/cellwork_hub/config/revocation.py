"""How soon a user's server forgets a token that the hub has taken back: as soon as the services do."""

from __future__ import annotations

from typing import Any

from cellwork.settings import Settings


def set_revocation(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    """Tell servers in their arguments, which nobody has set where there are no servers: `extend` takes both."""
    c.Spawner.args.extend([f"--HubOAuth.cache_max_age={settings.token_cache_seconds}"])
