"""A real container engine for tests: dockerd on a socket of its own, ended with the session; nothing of the machine's engine is touched.

What is slow to make stays in a cache folder outside the checkout (CELLWORK_TEST_CACHE, else the user's cache folder): the base
image's tarball, and per slot an engine's data folder with its images and build cache. A slot is locked by who uses it, so that
sessions at the same time have an engine each.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import platformdirs
from need import need

SLOTS = 8
START_SECONDS, STOP_SECONDS = 120, 60
RELEASE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates,libgomp1"
MADE = f"{RELEASE}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
BASE = f"cellwork-test/debian:{MADE}"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP = Path("/etc/pip.conf")
SECRET_MARK = "this line of a build secret may be in no layer"
CLEANED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log", "tmp")


@dataclass(frozen=True)
class Engine:
    """A running engine. `address` is what CELLWORK_CONTAINER_ENGINE takes."""

    address: str
    client: Any
    cache: Path

    def base(self) -> str:
        """Return the name of the base image; it is made once a slot."""
        if not self.client.images.list(name=BASE):
            with base_tarball(self.cache).open("rb") as tarball:
                self.client.api.import_image_from_data(tarball, repository=BASE.split(":")[0], tag=MADE)
        return BASE

    def secrets(self) -> dict[str, Path]:
        """What a build needs to reach the package index from this machine; it may end up in no layer."""
        found = {"cacert": CERTIFICATES, "pipconf": PIP}
        return {name: _marked(path, self.cache / name) for name, path in found.items()}

    def left(self) -> list[str]:
        """Return the names of all containers there are."""
        return [container.name for container in self.client.containers.list(all=True, ignore_removed=True)]


def cache_folder() -> Path:
    return Path(os.environ.get("CELLWORK_TEST_CACHE") or platformdirs.user_cache_path("cellwork-tests")) / "engine"


def _marked(path: Path, copy: Path) -> Path:
    """Return a copy of `path` (of nothing, if it is not there) that carries a comment by which a layer can be searched for it."""
    text = path.read_text() if path.is_file() else ""
    copy.write_text(f"# {SECRET_MARK}\n{text}")
    return copy


@contextmanager
def started() -> Iterator[Engine]:
    """Run an engine for the length of the block."""
    need(
        os.geteuid() == 0 and all(map(shutil.which, ("dockerd", "debootstrap", "setpriv"))),
        "root, dockerd (docker.io), debootstrap and setpriv, for a container engine",
    )
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with _slot(cache) as (number, lock), _running(cache / f"slot{number}", f"10.21{number}.0.0/16", lock) as engine:
        yield engine


@contextmanager
def small(data: Path, megabytes: int) -> Iterator[Engine]:
    """Run an engine beside the session's whose disk, at `data`, has so much room and nothing on it."""
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(data)], check=True, timeout=30)
    try:
        with (data / "lock").open("w") as lock, _running(data / "engine", "10.218.0.0/16", lock.fileno()) as engine:
            yield engine
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True, timeout=30)


@contextmanager
def _running(data: Path, pool: str, lock: int) -> Iterator[Engine]:
    import docker

    with tempfile.TemporaryDirectory(prefix="cwe-") as folder:
        process = _dockerd(Path(folder), data, pool, lock)
        address = f"unix://{folder}/docker.sock"
        try:
            _wait(process, address, Path(folder) / "log")
            client = docker.DockerClient(base_url=address, timeout=120)
            _sweep(client)
            yield Engine(address, client, cache_folder())
            _sweep(client)
            client.close()
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)


@contextmanager
def _slot(cache: Path) -> Iterator[tuple[int, int]]:
    """Hold the first slot that nobody else holds: its number, and the descriptor of its lock."""
    for number in range(SLOTS):
        lock: IO[str] = (cache / f"slot{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        with lock:
            yield number, lock.fileno()
        return
    raise AssertionError(f"all {SLOTS} engines of {cache} are in use")


def _dockerd(folder: Path, data: Path, pool: str, lock: int) -> subprocess.Popen[bytes]:
    command = [
        "setpriv", "--pdeathsig", "TERM", str(shutil.which("dockerd")), "--host", f"unix://{folder}/docker.sock", "--data-root", str(data),
        "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"), "--bridge", "none",
        "--default-address-pool", f"base={pool},size=24", "--exec-opt", "native.cgroupdriver=cgroupfs",
        "--default-ulimit", "nofile=20000:20000", "--default-ulimit", "nproc=20000:20000",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,)
        )


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    import docker

    end = time.monotonic() + START_SECONDS
    while True:
        try:
            client = docker.DockerClient(base_url=address, timeout=5)
            client.ping()
            client.close()
            return
        except (docker.errors.DockerException, OSError):
            alive = process.poll() is None and time.monotonic() < end
            assert alive, f"dockerd does not answer at {address}:\n{log.read_text()[-3000:]}"
            time.sleep(0.1)


def _sweep(client: Any) -> None:
    """Remove containers, networks and volumes of tests; images and the build cache stay."""
    import docker

    for container in client.containers.list(all=True, ignore_removed=True):
        with contextlib.suppress(docker.errors.NotFound):  # it was removed as it ended
            container.remove(force=True, v=True)
    for network in client.networks.list():
        if network.name not in ("none", "host", "bridge"):
            network.remove()
    for volume in client.volumes.list():
        volume.remove(force=True)


def base_tarball(cache: Path) -> Path:
    """Return a small Debian with Python as a tarball; made by debootstrap once a machine, because no registry can be reached."""
    path = cache / f"{MADE}.tar"
    with (cache / "base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                root, made = Path(folder) / "root", Path(folder) / "made.tar"
                words = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(root)]
                subprocess.run(words, check=True, timeout=900, stdout=subprocess.DEVNULL)
                for name in CLEANED:
                    shutil.rmtree(root / name, ignore_errors=True)
                    (root / name).mkdir(mode=0o1777 if name == "tmp" else 0o755, parents=True)
                (root / "tmp").chmod(0o1777)
                (root / "etc/apt/sources.list").unlink(missing_ok=True)
                subprocess.run(["tar", "-C", str(root), "-cf", str(made), "."], check=True, timeout=300)
                made.rename(path)
    return path
