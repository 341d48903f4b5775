"""Run jupyter-scheduler's own tests against our scheduler class, and write the table nbs/reference/scheduler.md.

    python tests/scheduler_suite/run.py CHECKOUT

CHECKOUT is a checkout of jupyter-scheduler's repository; pytest-jupyter[server] has to be importable. Nothing of it is kept
here. `make test` does not run this; what our class does is tested in tests/extensions/test_scheduler.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
sys.path.insert(0, str(TESTS))

from upstream import Results, results  # noqa: E402

PAGE = TESTS.parent / "nbs" / "reference" / "scheduler.md"
MODULES = ("test_scheduler", "test_handlers", "test_job_files_manager")
NOT_RUN = {
    "test_orm": "tests of their own tables, which we have none of",
    "test_execution_manager": "tests of execution in the server; ours is the platform's runners",
}
HEAD = [
    "# jupyter-scheduler's own tests on our scheduler",
    "",
    "What `tests/scheduler_suite/run.py` saw: jupyter-scheduler's tests of its scheduler, its handlers and its job files (repository after 2.11.0,",
    "installed 2.12.1), with `cellwork_jupyter.server.scheduler.Scheduler` on a running jobs service in the place of their class on a",
    "database. Where their tests look into the database they look into a copy of what the service holds. Many tests of handlers replace the",
    "scheduler's methods by mocks: those say that our class has the methods, no more.",
    "",
    "| test | passed | failed | skipped | |",
    "| --- | --- | --- | --- | --- |",
]


def run(checkout: Path, report: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for module in MODULES:
            shutil.copy2(checkout / "jupyter_scheduler" / "tests" / f"{module}.py", folder)
        shutil.copy2(HERE / "fixtures.py", folder / "conftest.py")
        paths = [str(TESTS / "hub"), str(TESTS), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "SCHEDULER_CHECKOUT": str(checkout), "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "--rootdir", name, "-c", os.devnull, "-p", "no:cacheprovider", f"--junitxml={report}", name]  # fmt: skip
        subprocess.run(command, env=environment, check=False, timeout=900)


def table(found: Results) -> list[str]:
    lines, total = [], defaultdict[str, int](int)
    for name, outcomes in sorted(found.items()):
        lines.append(f"| {name} | {outcomes['passed']} | {outcomes['failed']} | {outcomes['skipped']} | |")
        for outcome, count in outcomes.items():
            total[outcome] += count
    lines += [f"| {module} | 0 | 0 | 0 | not run: {why} |" for module, why in NOT_RUN.items()]
    return [*lines, f"| all | {total['passed']} | {total['failed']} | {total['skipped']} | |"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkout", type=Path)
    asked = arguments.parse_args()
    report = Path(tempfile.mkdtemp()) / "report.xml"
    run(asked.checkout.resolve(), report)
    PAGE.write_text("\n".join([*HEAD, *table(results(report)), ""]))


if __name__ == "__main__":
    main()
