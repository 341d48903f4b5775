"""Run Feast's own tests of offline and online stores against our classes, and write the table nbs/reference/feast.md.

    python tests/feast_suite/run.py CHECKOUT [--redis redis://127.0.0.1:6379/0]

CHECKOUT is a checkout of Feast's repository; what its tests import beyond our `all` and `dev` has to be importable: assertpy, botocore, google-cloud-bigquery,
minio, psycopg, psycopg-pool, pytest-asyncio, pytest-env, pytest-mock, python-keycloak, testcontainers (but not pytest-lazy-fixture, which breaks
this pytest). Nothing of it is kept here. `make test` does not run this. A run that could not collect a module writes no table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from upstream import Results, results  # noqa: E402

PAGE = HERE.parents[1] / "nbs" / "reference" / "feast.md"
OFFLINE = (
    "test_universal_historical_retrieval", "test_non_entity_mode", "test_persist", "test_push_features_to_offline_store",
    "test_universal_materialization", "test_offline_write", "test_feature_logging",
)  # fmt: skip
ONLINE = ("test_universal_online", "test_push_features_to_online_store", "test_universal_e2e")
EMPTY = ("entity_ttl", "event_check")  # they pass without having asked anything
NOT_APPLICABLE = {  # part of a test's name -> why it says nothing about our classes
    "connection_pool": "tests PostgreSQL's own store",
    "entity_ttl": "returns at once outside Feast's own cloud; a setting of its Redis store",
    "openai": "vector search; our store has none",
    "image_search": "vector search; our store has none",
    "event_check": "returns at once outside Feast's own cloud; what it asks is in tests/lib/test_online.py",
    "entities_from_query": "asks with SQL, which Feast does of SQL stores only",
    "push_features_and_read_async": "Feast runs it for DynamoDB only",
    "dynamo": "tests Amazon DynamoDB's own store",
    "elasticsearch": "vector search of another store",
    "milvus": "vector search of another store",
    "vector": "vector search; our store has none",
    "documents": "vector search; our store has none",
    "versioned": "Feast reads versions of views from a fixed list of its own stores",
}
REASONS = {  # part of a failing test's name -> why
    "preserves_multiple_timestamps": "compares float32 values of its file with float64; Feast's default store fails it as well (it returns one row of three)",
}


def run(checkout: Path, modules: list[str], redis: str, report: Path) -> None:
    """Run the test modules and write pytest's report in JUnit's form."""
    root = checkout / "sdk" / "python"
    extra = os.pathsep.join([str(root), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ, "PYTHONPATH": extra, "FULL_REPO_CONFIGS_MODULE": "cellwork_stores", "FEAST_IS_LOCAL_TEST": "True",
        "IS_TEST": "True", "CELLWORK_TEST_REDIS": redis,
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--integration",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *modules,
    ]
    done = subprocess.run(command, cwd=root, env=environment, check=False, timeout=3600)
    if done.returncode not in (0, 1):  # 1: some tests failed, which the table says
        sys.exit(f"pytest ended with {done.returncode} before it had run them all: no table is written")


def table(found: Results) -> list[str]:
    lines = ["| test | passed | failed | not applicable | reason |", "| --- | --- | --- | --- | --- |"]
    total: dict[str, int] = defaultdict(int)
    for name, outcomes in sorted(found.items()):
        why = next((reason for part, reason in NOT_APPLICABLE.items() if part in name), "")
        passed = 0 if any(part in name for part in EMPTY) else outcomes["passed"]
        aside = sum(outcomes.values()) - passed if why else outcomes["skipped"]
        counts = {"passed": passed, "failed": 0 if why else outcomes["failed"], "aside": aside}
        reason = next((text for part, text in REASONS.items() if part in name), "") if counts["failed"] else why
        if aside and not why:
            reason = reason or "skipped by Feast for every local store"
        for key, value in counts.items():
            total[key] += value
        lines.append(f"| {name} | {counts['passed']} | {counts['failed']} | {counts['aside']} | {reason} |")
    lines.append(f"| all | {total['passed']} | {total['failed']} | {total['aside']} | |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkout", type=Path)
    arguments.add_argument("--redis", default="")
    arguments.add_argument("--report", type=Path, action="append", default=[], help="a report that is there already")
    asked = arguments.parse_args()
    reports = list(asked.report)
    if not reports:
        modules = [f"tests/integration/offline_store/{name}.py" for name in OFFLINE]
        modules += [f"tests/integration/online_store/{name}.py" for name in ONLINE]
        reports = [Path(tempfile.mkdtemp()) / "report.xml"]
        run(asked.checkout, modules, asked.redis, reports[0])
    whole: Results = {}
    for report in reports:
        whole.update(results(report))
    PAGE.write_text("\n".join([*HEAD, "", *table(whole), ""]))


HEAD = [
    "# Feast's own tests on our stores",
    "",
    "What `tests/feast_suite/run.py` saw: the tests of offline and online stores in Feast's repository (f0bc070, between 0.66 and 0.67), run against",
    "`cellwork.features.feast.OfflineStore` (parquet and Delta files) and `cellwork.features.feast.OnlineStore` (SQLite and Redis).",
    "Each number counts the cases of a test. Feast's generated sources say that all values were created today, so these runs have",
    "`arrival: false`.",
]

if __name__ == "__main__":
    main()
