"""Endpoints: deployed, routed, asked and rolled back by `remote`, scored in bulk by `batch`; the rest is what a service runs.

`choose`, `ask`, `endpoint`, `log`, `plan` and `predictor` are the serving core: they know no HTTP and no database but their own.
"""

from __future__ import annotations

from cellwork.serving.batch import score_batch
from cellwork.serving.remote import beside, deploy, predict, remove, roll_out, rollback

__all__ = ["beside", "deploy", "predict", "remove", "roll_out", "rollback", "score_batch"]
