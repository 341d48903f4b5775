"""A real PostgreSQL on a free port of 127.0.0.1; one a test process, started when it is first asked for, ended with it."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

from need import need

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
    need(bool(program("initdb") and program("pg_ctl")), "PostgreSQL")
    temporary = tempfile.TemporaryDirectory(prefix="cellwork-postgres-")
    folder = Path(temporary.name)
    if os.geteuid() == 0:
        need(bool(shutil.which("setpriv")), "setpriv, to run PostgreSQL as another account than root")
        os.chown(folder, pwd.getpwnam(ACCOUNT).pw_uid, -1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _run(
        folder, "initdb", "-D", str(folder / "data"), "-U", "cellwork", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
    )
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off -c max_connections=200"
    _run(folder, "pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-o", options, "-w", "start")
    atexit.register(temporary.cleanup)
    atexit.register(_run, folder, "pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "-w", "stop")
    return f"postgresql+psycopg://cellwork@127.0.0.1:{port}"


def database(name: str = "") -> str:
    """Return the address of a new, empty database."""
    import psycopg

    name = name or f"t{uuid.uuid4().hex}"
    with psycopg.connect(server().replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    return f"{server()}/{name}"


def _run(folder: Path, name: str, *words: str) -> None:
    command = [program(name), *words]
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={ACCOUNT}", "--clear-groups", *command]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
