"""Kernels forked from a process that has imported what notebooks import, and has computed nothing.

The zygote is a process of its own (``python -m cellwork.runs.zygote SOCKET MODULE...``): it holds no secret and no connection,
runs no code of a notebook, and forks a child for each kernel that is asked for over its socket, which only its own account can
reach. The child is a real ipykernel in a session of its own: it closes what it inherited, takes the environment it is given
and nothing else, and gets fresh random numbers, because every fork starts with the same. Before it is used a zygote proves that
a fork of it can compute; where it can't, kernels are started fresh.

The child dies with the zygote, and the zygote with who started it, so that nothing stays behind.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

SMOKE_SECONDS, START_SECONDS, ANSWER_SECONDS = 60.0, 120.0, 10.0
PARENT_DEATH_SIGNAL = 1  # linux/prctl.h
MOST_REQUEST = 1 << 20
MEMORY_ONLY = ("--HistoryManager.hist_file=:memory:",)
SMOKE = """
import sys
if "numpy" in sys.modules:
    import numpy as np; np.linalg.svd(np.random.rand(120, 120))
if "pandas" in sys.modules:
    import pandas as pd; pd.DataFrame({"a": [1, 2, 1], "b": [1.0, 2.0, 3.0]}).groupby("a").mean()
if "polars" in sys.modules:
    import polars as pl; pl.DataFrame({"a": [1, 2, 1], "b": [1.0, 2.0, 3.0]}).group_by("a").mean()
if "sklearn" in sys.modules:
    from sklearn.ensemble import HistGradientBoostingClassifier
    X = [[k] for k in range(60)]
    if "pandas" in sys.modules:
        X = pd.DataFrame(X, columns=["k"])
    HistGradientBoostingClassifier(max_iter=2).fit(X, [k % 2 for k in range(60)])
"""
REMEMBERED = (("narwhals.plugins", "_discover_entrypoints"),)
"""Functions that look through all that is installed when they are first asked, and remember: scikit-learn asks with its first frame."""


class Zygote:
    """A running zygote, as its user sees it. Processes that were forked from its starter may use it too."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process, self.path = process, path

    @classmethod
    def start(cls, folder: Path, modules: Sequence[str], environment: Mapping[str, str]) -> Zygote | None:
        """Start one with its socket in `folder` (private, a short path); returns None if it can't be used, and says why on its log."""
        path = folder / "zygote"
        process = subprocess.Popen([sys.executable, "-m", "cellwork.runs.zygote", str(path), *modules], env=dict(environment), stdin=subprocess.DEVNULL)  # fmt: skip
        made, end = cls(process, path), time.monotonic() + START_SECONDS
        while not path.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if path.exists() and made._smoke():
            return made
        made.stop()
        return None

    def alive(self) -> bool:
        return self.path.exists()

    def _smoke(self) -> bool:
        try:
            child = self.fork({"smoke": True})
        except (OSError, ValueError):
            return False
        code = child.wait_for(SMOKE_SECONDS)
        child.kill()
        return code == 0

    def fork(self, asked: Mapping[str, Any]) -> Forked:
        """Return the child that was forked for `asked`; raises OSError or ValueError if none was."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(str(self.path))
            connection.sendall(json.dumps(dict(asked)).encode() + b"\n")
            return Forked(int(connection.recv(100).split()[0]), connection)
        except (OSError, ValueError, IndexError):
            connection.close()
            raise

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.path.unlink(missing_ok=True)


class Forked:
    """A child of the zygote, with what of `subprocess.Popen` is asked of a kernel's process."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self._connection = pid, connection
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._take()
        return self.returncode

    def _take(self) -> None:
        """Take the zygote's word that the child has ended; without the zygote its children have ended too."""
        try:
            word = self._connection.recv(100)
        except OSError:
            word = b""
        self.returncode = int(word) if word.strip() else -signal.SIGKILL
        self._connection.close()

    def wait_for(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            self._take()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        return self.wait_for(timeout if timeout is not None else 30.0)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _die_with_parent(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, number, 0, 0, 0)


def serve(path: Path, modules: Sequence[str]) -> None:
    """Import `modules` and fork children until the end; single-threaded, and nothing is ever computed here."""
    _die_with_parent(signal.SIGKILL)
    for module in ("ipykernel.kernelapp", "ipykernel.ipkernel", "matplotlib_inline.backend_inline", *modules):
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"zygote: {module} is left out: {error}", file=sys.stderr)
    _learn()
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page it shares with this process
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(0o077)
    listening.bind(str(path.with_suffix(".new")))
    listening.listen(64)
    path.with_suffix(".new").rename(path)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    while True:
        ready: list[Any] = select.select([listening.fileno(), woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
        _reap(children)
        if listening.fileno() in ready:
            _answer(listening, children)


def _learn() -> None:
    """Import what a kernel imports while it starts and first computes, as a child that did so has told."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _tell_imports(theirs)
    os.close(theirs)
    with os.fdopen(ours) as told:
        ready = select.select([told], [], [], SMOKE_SECONDS)[0]
        names = told.read().split() if ready else []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for name in names:
        with contextlib.suppress(ImportError):  # of a folder that another module puts on the path: it comes with that
            importlib.import_module(name)
    for name, function in REMEMBERED:
        if found := getattr(sys.modules.get(name), function, None):
            found()


def _tell_imports(to: int) -> NoReturn:
    """Start a kernel in this fork, up to where it would listen, compute, write the names of what that imported, and end."""
    from ipykernel.kernelapp import IPKernelApp

    before = set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="cw-") as folder:
        os.environ["IPYTHONDIR"] = folder
        try:
            app = IPKernelApp.instance()
            app.initialize(["-f", f"{folder}/kernel.json", "--transport=ipc", *MEMORY_ONLY])
            exec(SMOKE, {})
            os.write(to, "\n".join(name for name in sys.modules if name not in before).encode())
        finally:  # never back into the zygote's own code, whatever was raised
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        connection = children.pop(pid)
        with contextlib.suppress(OSError):  # who asked for it is gone
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        connection.close()


def _answer(listening: socket.socket, children: dict[int, socket.socket]) -> None:
    connection, _ = listening.accept()
    connection.settimeout(5)
    try:
        data = b""
        while not data.endswith(b"\n") and len(data) < MOST_REQUEST and (part := connection.recv(65_536)):
            data += part
        asked = json.loads(data)
    except (OSError, ValueError):
        connection.close()
        return
    pid = os.fork()
    if pid == 0:
        _become(asked)
    children[pid] = connection
    try:
        connection.sendall(f"{pid}\n".encode())
    except OSError:
        os.kill(pid, signal.SIGKILL)


def _become(asked: dict[str, Any]) -> None:
    """Turn this fork into what was asked for; never returns."""
    code = 1
    try:
        os.setsid()
        _die_with_parent(signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.closerange(3, 4096)
        os.umask(0o022)
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        if asked.get("smoke"):
            exec(SMOKE, {})
            code = 0
        else:
            code = _kernel(asked)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # the end of a process: what it was goes to the log
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _kernel(asked: dict[str, Any]) -> int:
    from ipykernel.kernelapp import IPKernelApp

    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = ["ipykernel_launcher", *asked["argv"]]
    sys.path[0] = ""
    IPKernelApp.launch_instance(argv=asked["argv"])
    return 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:])
