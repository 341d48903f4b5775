"""How a model does in production: outcomes sent here become quality per day and version."""

from __future__ import annotations

from cellwork.monitoring import outcomes
from cellwork.monitoring.outcomes import quality

__all__ = ["outcomes", "quality"]
