"""What another project's tests said when they were run against our classes: pytest's report, counted by test function."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

Results = dict[str, dict[str, int]]
"""Test function, with its module -> outcome (``passed``, ``failed``, ``skipped``) -> how many of its cases."""


def results(report: Path) -> Results:
    """Return what stands in `report`, which pytest wrote in JUnit's form."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        function = re.sub(r"\[.*", "", case.get("name", ""))
        name = f"{case.get('classname', '').split('.')[-1]}::{function}"
        kinds = {child.tag for child in case}
        outcome = "skipped" if "skipped" in kinds else "failed" if kinds & {"failure", "error"} else "passed"
        found[name][outcome] += 1
    return found
