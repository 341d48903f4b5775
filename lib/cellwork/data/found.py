"""Search from a notebook or the command line: what the platform's data service finds, with the endpoints and jobs that use it."""

from __future__ import annotations

from collections.abc import Sequence

from cellwork.client import Client, connect
from cellwork.errors import CellworkError
from cellwork.wire.search import Found, Kind


def search(question: str, *, project: str = "", kind: Kind | None = None, limit: int = 50) -> list[Found]:
    """Return data sets, views, features, labels and datasets that hold every word of `question`, the best first.

    Words may be beginnings, or misspelt by a letter. `used_by` names models, endpoints and jobs too, as far as their services answer.
    """
    client = connect()
    found = client.search.find(question, project=project, kind=kind or "", limit=limit)
    _add_endpoints(client, found)
    _add_jobs(client, found)
    return found


def _add_endpoints(client: Client, found: Sequence[Found]) -> None:
    """Add the endpoints whose live version is one of the models named."""
    if not any(user.startswith("model:") for entry in found for user in entry.used_by):
        return
    try:
        live = [
            (s.routes.endpoint, f"model:{s.routes.live.name}@{s.routes.live.version}") for s in client.endpoints.list()
        ]
    except CellworkError:  # who serves is a courtesy; what was found is the answer
        return
    for entry in found:
        entry.used_by += [f"endpoint:{name}" for name, model in live if model in entry.used_by]


def _add_jobs(client: Client, found: Sequence[Found]) -> None:
    """Say of each run which job it is of."""
    runs = {user for entry in found for user in entry.used_by if user.startswith("run:")}
    jobs = {run: _job(client, run.removeprefix("run:")) for run in runs}
    for entry in found:
        entry.used_by = list(dict.fromkeys(jobs.get(user) or user for user in entry.used_by))


def _job(client: Client, run: str) -> str:
    try:
        job = client.jobs.run(run).job
    except CellworkError:  # as above: the run's own id is said instead
        return ""
    return f"job:{job}" if job else ""
