"""Every path under CELLWORK_HOME, one function each, with its mode. Nothing else builds such a path."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from cellwork import ids
from cellwork.errors import BadInput, Refused


class Home:
    """The platform's folder. It belongs to the platform's account; notebooks never open it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ensure(self) -> Home:
        """Make the folder and its fixed parts; raises Refused if it can't be written."""
        try:
            for folder, mode in (
                (self.root, 0o700),
                (self.secrets, 0o700),
                (self.db, 0o700),
                (self.logs, 0o700),
                (self.run, 0o700),
            ):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(mode)
            probe = self.run / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise Refused(
                "CELLWORK_HOME",
                self.root,
                f"can't be written ({error.strerror})",
                "set CELLWORK_HOME to a folder of yours",
            ) from None
        return self

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def db(self) -> Path:
        return self.root / "db"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    def secret(self, name: str) -> Path:
        return self.secrets / ids.name(name, "secret")

    def database(self, service: str) -> Path:
        return self.db / f"{ids.name(service, 'service')}.sqlite"

    def outcomes(self) -> Path:
        """Predictions beside what came of them; the platform service's."""
        return self.db / "outcomes.duckdb"

    def log(self, service: str) -> Path:
        return self.logs / f"{ids.name(service, 'service')}.log"

    def ports(self) -> Path:
        return self.run / "ports.json"

    def pids(self) -> Path:
        return self.run / "pids.json"

    def servers(self) -> Path:
        """How user servers run, as the last start decided."""
        return self.run / "servers.json"

    def profiles(self) -> Path:
        """The menu of user servers; the built-in one holds if there is none."""
        return self.root / "profiles.toml"

    def lock(self) -> Path:
        return self.run / "up.lock"

    def voila_socket(self) -> Path:
        """Where the dashboards' own server listens."""
        return self.run / "voila.sock"

    def views(self, owner: str, server: str) -> Path:
        """What the published dashboard in that server last showed, for whoever may open it; a folder of this account's."""
        return self.root / "dashboards" / hashlib.sha256(f"{owner}/{server}".encode()).hexdigest()

    def proxy(self) -> Path:
        return self.run / "proxy"

    def workspace(self) -> Path:
        """The folder that Lab opens, unless the setting `workspace` names another."""
        return self.root / "work"

    def jupyter(self) -> Path:
        """What Lab and its kernels keep beside the notebooks: layouts, settings, connection files."""
        return self.root / "jupyter"

    def raw_table(self, project: str, dataset: str) -> Path:
        return self.root / "data" / "raw" / ids.name(project) / ids.name(dataset)

    def quarantine(self, project: str, dataset: str) -> Path:
        """Rows that were refused, with the reason; a Delta table like the raw one."""
        return self.root / "data" / "quarantine" / ids.name(project) / ids.name(dataset)

    def held(self, project: str, dataset: str) -> Path:
        """Deliveries that a check held back, as they came; sealed values too, so no other account reads it."""
        return self.root / "data" / "held" / ids.name(project) / ids.name(dataset)

    def erasing(self) -> Path:
        """Erasures that are not finished; each file names its subject and goes with the end."""
        return self.root / "data" / "erasing"

    def sketches(self, project: str, kind: str, name: str) -> Path:
        """Sketches of the batches of a raw data set (``raw``) or a view (``features``); they can be made again."""
        return self.root / "data" / "sketches" / ids.name(project) / ids.name(kind) / ids.name(name)

    def prepared(self, project: str, name: str) -> Path:
        return self.root / "data" / "prepared" / ids.name(project) / ids.name(name)

    def feature_table(self, project: str, view: str) -> Path:
        return self.root / "data" / "features" / ids.name(project) / ids.name(view)

    def dataset(self, dataset_id: str) -> Path:
        return self.root / "data" / "datasets" / ids.check(dataset_id, "ds")

    def sealed(self, project: str) -> Path:
        """What only the platform service reads: sealed label columns and the feature rows made from them."""
        return self.root / "data" / "sealed" / ids.name(project)

    def feast_registry(self, project: str) -> Path:
        return self.root / "data" / "feast" / f"{ids.name(project)}.pb"

    def online(self, project: str) -> Path:
        return self.root / "online" / f"{ids.name(project)}.sqlite"

    def artifacts(self) -> Path:
        return self.root / "mlflow" / "artifacts"

    def models(self) -> Path:
        """Copies of registered model folders, by content digest; made and checked by the platform's services."""
        return self.root / "models"

    def segments(self) -> Path:
        """Where serving processes append what they answered, until the prediction log takes it over."""
        return self.root / "predictions" / "segments"

    def archived_predictions(self) -> Path:
        """The prediction log's old part: Parquet, a folder a day."""
        return self.root / "predictions" / "days"

    def tallies(self) -> Path:
        """What each process of the inference service has counted."""
        return self.run / "inference"

    def compiled(self) -> Path:
        """Programs read out of models, by the model's digest, and the kernel built on this machine; made by the services."""
        return self.root / "compiled"

    def source(self, sha256: str) -> Path:
        """Notebooks and files of jobs and runs, by content."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise BadInput("content hash", sha256[:80], "is not SHA-256 in hex", "ask the jobs service for the run")
        return self.root / "runs" / "sources" / sha256[:2] / sha256

    def image(self, digest: str) -> Path:
        """What is known of a container image: its record by digest, kept after the image is gone."""
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise BadInput("image digest", digest[:80], "is not sha256: and 64 hex digits", "look: cellwork image list")
        return self.root / "images" / f"{digest.removeprefix('sha256:')}.json"

    def attempt(self, run: str, number: int) -> Path:
        return self.root / "runs" / ids.check(run, "run") / str(int(number))

    def checkpoint(self, run: str, key: str) -> Path:
        """The archive of a run's checkpoint; beside it, as .json, what it is about."""
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise BadInput("checkpoint", key[:80], "is not SHA-256 in hex", "ask the jobs service for the run")
        return self.root / "runs" / ids.check(run, "run") / "checkpoints" / f"{key}.tar"
