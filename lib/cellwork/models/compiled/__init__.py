"""Models as plain numbers: read out of scikit-learn once, in a child process, then computed here without it.

`extract` (in the child) turns a fitted pipeline into a `program`: tables, weights and trees, nothing that can carry code. The
parent checks every index of it, compares its scores with scikit-learn's, and only then computes with it (`machine`, `native`).
What can't be said as a program stays with scikit-learn.
"""

from __future__ import annotations

from cellwork.models.compiled.build import NotCompiled, ensure
from cellwork.models.compiled.machine import Machine

__all__ = ["Machine", "NotCompiled", "ensure"]
