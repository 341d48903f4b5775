"""The one HTTP client: a method a path. CLI, magics, widgets and notebooks reach the services through nothing else."""

from __future__ import annotations

from cellwork.client.base import Connection
from cellwork.client.batches import Batches
from cellwork.client.dashboards import Dashboards
from cellwork.client.datasets import Datasets
from cellwork.client.endpoints import Endpoints
from cellwork.client.evaluations import Evaluations
from cellwork.client.features import Features
from cellwork.client.gate import Gates
from cellwork.client.jobs import Jobs
from cellwork.client.keys import Keys
from cellwork.client.monitors import Monitors
from cellwork.client.outcomes import Outcomes
from cellwork.client.records import Records
from cellwork.client.search import Search
from cellwork.client.secrets import Secrets
from cellwork.client.snapshots import Snapshots
from cellwork.client.users import Projects, Users

__all__ = ["Client", "connect"]


class Client:
    """All services at one address, as one principal. Threads may share it."""

    def __init__(self, url: str, token: str, *, timeout: float = 600.0) -> None:
        self.connection = Connection(url, token, timeout=timeout)
        self.batches = Batches(self.connection)
        self.features = Features(self.connection)
        self.datasets = Datasets(self.connection)
        self.evaluations = Evaluations(self.connection)
        self.gate = Gates(self.connection)
        self.outcomes = Outcomes(self.connection)
        self.monitors = Monitors(self.connection)
        self.endpoints = Endpoints(self.connection)
        self.keys = Keys(self.connection)
        self.jobs = Jobs(self.connection)
        self.records = Records(self.connection)
        self.secrets = Secrets(self.connection)
        self.users = Users(self.connection)
        self.projects = Projects(self.connection)
        self.search = Search(self.connection)
        self.dashboards = Dashboards(self.connection)
        self.snapshots = Snapshots(self.connection)

    @property
    def closed(self) -> bool:
        return self.connection.http.is_closed

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_shared: dict[tuple[str, str], Client] = {}


def connect() -> Client:
    """Return the client of this process: CELLWORK_URL and CELLWORK_TOKEN, else the platform that runs from this CELLWORK_HOME.

    Raises
    ------
    Unavailable
        Neither is there.
    """
    from cellwork.client.base import address

    key = address()
    if key not in _shared or _shared[key].closed:
        _shared[key] = Client(*key)
    return _shared[key]
