"""A real PostgreSQL on a free port of 127.0.0.1; one a test process, started when it is first asked for, ended with it."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import tied
from need import need
from ports import free_port

DEBIAN = Path("/usr/lib/postgresql")
ACCOUNT = "nobody"
"""Whose it is when root starts it: it refuses to run as root, and its account must have a name."""


def program(name: str) -> str:
    """Return the path of one of the server's programs, which Debian keeps away from the PATH."""
    beside = sorted(DEBIAN.glob(f"*/bin/{name}"), reverse=True)
    return str(beside[0]) if beside else shutil.which(name) or ""


@functools.cache
def server() -> str:
    """Return the address of the server, as SQLAlchemy takes it, without a database's name."""
    need(bool(program("initdb") and program("postgres")), "PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="cellwork-postgres-"))
    if os.geteuid() == 0:
        need(bool(shutil.which("setpriv")), "setpriv, to run PostgreSQL as another account than root")
        os.chown(folder, pwd.getpwnam(ACCOUNT).pw_uid, -1)
    made = ["-D", str(folder / "data"), "-U", "cellwork", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    done = subprocess.run(_command("initdb", *made), cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    port = free_port()
    options = ["-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off", "-c", "max_connections=200"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = tied.start(_command("postgres", *options), remove=folder, cwd=folder, stdout=log, stderr=log)
    address = f"postgresql+psycopg://cellwork@127.0.0.1:{port}"
    _wait(address, process, folder / "log")
    atexit.register(tied.stop, process, signal.SIGQUIT)
    return address


def database(name: str = "") -> str:
    """Return the address of a new, empty database."""
    import psycopg

    name = name or f"t{uuid.uuid4().hex}"
    with psycopg.connect(server().replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    return f"{server()}/{name}"


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(address.replace("+psycopg", "") + "/postgres").close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)


def _command(name: str, *words: str) -> list[str]:
    command = [program(name), *words]
    return ["setpriv", f"--reuid={ACCOUNT}", "--clear-groups", *command] if os.geteuid() == 0 else command
