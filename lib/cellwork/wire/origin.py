"""Where work comes from; it stands on every batch, dataset, training run, version and deployment."""

from __future__ import annotations

import msgspec


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    user: str = ""
    project: str = ""
    notebook: str = ""
    cell_id: str = ""
    source_sha256: str = ""
    run: str = ""
    attempt: int = 0
    git_commit: str = ""
    image_digest: str = ""
    env: str = ""


HEADER = "x-cellwork-origin"
"""The request header that carries an Origin as JSON."""
