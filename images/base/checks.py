"""How every `verify` reports: a line a check, exit code 1 if one failed. A check returns whether it passed, or raises."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence


def run(checks: Sequence[Callable[[], bool]], *, after: str = "") -> int:
    """Run the checks of the image this one is made on (`after`), then `checks`; return the exit code."""
    failed = subprocess.run([f"/opt/cellwork/verify/{after}"], check=False).returncode if after else 0
    for check in checks:
        why = ""
        try:
            passed = check()
        except Exception as error:  # a check may fail in any way; the report is this script's only purpose
            passed, why = False, f": {type(error).__name__}: {error}"
        print(f"{'ok' if passed else 'FAILED':<6} {check.__name__.replace('_', ' ')}{why}", flush=True)
        failed += not passed
    return min(failed, 1)
