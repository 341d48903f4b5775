"""Cellwork: from a notebook cell to a traced prediction.

Importing this loads nothing heavy; each part loads what it needs when it is used.
"""

from __future__ import annotations

__version__ = "0.1.0"
