"""When idle user servers stop: each watches itself, so that there is one culler to understand. 0 seconds is never.

A Lab is told in its arguments, a dashboard, which has none, in its environment.
"""

from __future__ import annotations

from typing import Any

from cellwork.settings import Settings
from cellwork_hub import idle


def set_culling(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    seconds = settings.culling_idle_seconds
    if seconds:
        told = [
            f"--ServerApp.shutdown_no_activity_timeout={seconds}",
            f"--MappingKernelManager.cull_idle_timeout={seconds}",
            "--MappingKernelManager.cull_interval=30",
        ]
        c.Spawner.args.extend(told)  # where there are no servers nobody has set any: `extend` and `update` take both
        c.Spawner.environment.update({idle.VARIABLE: str(seconds)})
