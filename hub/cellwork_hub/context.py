"""What every service needs to know of the running platform: settings, ports, its own token, its database."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cellwork import files, settings
from cellwork.client import Client
from cellwork.errors import Unavailable
from cellwork.home import Home
from cellwork.settings import Settings

SERVICES = ("cellwork", "mlflow", "jobs", "inference", "dashboards")
"""Services behind the hub's login, in the order they start; the hub and its proxy come after them."""


@dataclass(frozen=True)
class Context:
    settings: Settings
    ports: dict[str, int]
    """`public` (the proxy), `hub`, `proxy-api` and one a service, as the supervisor chose them."""

    @classmethod
    def load(cls) -> Context:
        """Return the context of the platform that runs from CELLWORK_HOME; raises Unavailable if none was started."""
        chosen = settings.load()[0]
        try:
            return cls(chosen, json.loads(chosen.folder.ports().read_text()))
        except OSError:
            raise Unavailable("platform", chosen.home, "was never started here", "start it with: cellwork up") from None

    @property
    def home(self) -> Home:
        return self.settings.folder

    @property
    def public_url(self) -> str:
        return f"http://{self.settings.host}:{self.ports['public']}"

    @property
    def hub_api(self) -> str:
        return f"http://127.0.0.1:{self.ports['hub']}/hub/api"

    def token(self, service: str) -> str:
        """The hub's API token of a service; made by the supervisor, 0600."""
        return files.read_secret(self.home.secret(f"{service}-token"))

    def database_url(self, service: str) -> str:
        if self.settings.database_url:
            return self.settings.database_url.format(service=service)
        path: Path = self.home.database(service)
        return f"sqlite:///{path}"

    def voila_socket(self) -> Path:
        """Where Voila listens, as a path from here if that is shorter: the system limits it to about 100 characters."""
        path = self.home.voila_socket()
        return min(path, Path(os.path.relpath(path)), key=lambda p: len(str(p)))

    def client(self, service: str) -> Client:
        """A client that speaks as `service`."""
        return Client(self.public_url, self.token(service))
