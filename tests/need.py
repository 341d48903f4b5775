"""What a test needs from the machine: missing, it is skipped with one line that names it; with REQUIRE=all it fails."""

from __future__ import annotations

import os

import pytest


def need(there: bool, what: str) -> None:
    if there:
        return
    if os.environ.get("REQUIRE") == "all":
        pytest.fail(f"REQUIRE=all, and there is no {what}")
    pytest.skip(f"needs {what}")
