"""Endpoints: deployed, asked and rolled back by `remote`, scored in bulk by `batch`; the rest is what a service runs.

`choose`, `endpoint`, `log`, `plan` and `predictor` are the serving core: they know no HTTP and no database but their own.
"""

from __future__ import annotations

from cellwork.serving.batch import score_batch
from cellwork.serving.remote import deploy, predict, rollback

__all__ = ["deploy", "predict", "rollback", "score_batch"]
