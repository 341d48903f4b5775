"""One kernel for one run: a process group of its own, reached over sockets in a private folder, ended with the run.

It gets an environment of allowed names and what the run needs, never the variables of the process that starts it. A kernel
can be started ahead of its run (`prepare` then hands the run's variables over); no kernel serves two runs.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork.errors import Unavailable

if TYPE_CHECKING:
    from cellwork.runs.zygote import Zygote

ALLOWED = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH",
    "LD_LIBRARY_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME", "MPLBACKEND", "JUPYTER_PATH", "CUDA_VISIBLE_DEVICES",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
})  # fmt: skip
VERSIONS = (
    "__import__('json').dumps({n: v for n, m in sorted(__import__('sys').modules.items()) if '.' not in n and n[0] != '_' "
    "for v in [getattr(m, '__dict__', {}).get('__version__')] if isinstance(v, str)})"
)
"""Only what stands there: a version that a module works out when it is asked reads files for it."""
ALLOWED_PREFIXES = ("LC_", "OMP_", "OPENBLAS_", "MKL_", "NUMEXPR_", "POLARS_", "DASK_")


def allowed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of `environ` a kernel may see: no credential is under these names."""
    return {key: value for key, value in environ.items() if key in ALLOWED or key.startswith(ALLOWED_PREFIXES)}


class Kernel:
    """A running kernel. All methods but `interrupt` and `kill` belong to the thread that started it."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client = manager, client
        self.pid: int = manager.provisioner.pid
        self.folder = Path(manager.connection_file).parent
        """Where its sockets are; the kernel can write there, wherever it lives."""
        self.language_info: dict[str, Any] = {}

    @classmethod
    def start(
        cls,
        folder: Path,
        environment: Mapping[str, str],
        *,
        name: str = "python3",
        cwd: Path | None = None,
        timeout: float = 60,
        command: list[str] | None = None,
        zygote: Zygote | None = None,
    ) -> Kernel:
        """Start the kernel `name`, with its sockets in `folder` (private, a short path), and wait until it answers.

        `command` takes the place of the one that is installed under `name`; it gets ``-f`` and the connection file.
        With a `zygote`, and no `command`, it is forked from there; if that fails it is started fresh.

        Raises
        ------
        Unavailable
            No kernel of that name is installed, or it does not answer within `timeout` seconds.
        """
        from jupyter_client.kernelspec import NoSuchKernel
        from jupyter_core.utils import run_sync

        manager = _manager(folder, name, zygote if name == "python3" and not command else None)
        if command:
            from jupyter_client.kernelspec import KernelSpec

            manager._kernel_spec = KernelSpec(argv=[*command, "-f", "{connection_file}"], language="python")
        options = ["--HistoryManager.hist_file=:memory:"]
        try:
            run_sync(manager.start_kernel)(env=dict(environment), cwd=str(cwd or folder), extra_arguments=options)
        except NoSuchKernel:
            raise Unavailable("kernel", name, "is not installed here", "look at: jupyter kernelspec list") from None
        client = manager.client()
        client.start_channels()
        kernel = cls(manager, client)
        try:
            run_sync(client.wait_for_ready)(timeout=timeout)
            kernel.language_info = kernel._ask(client.kernel_info(), timeout)["language_info"]
        except BaseException as error:  # also SystemExit of a signal: no kernel stays behind
            kernel.stop()
            if isinstance(error, RuntimeError):
                raise Unavailable(
                    "kernel", name, f"did not start: {error}", "run it in JupyterLab to see why"
                ) from None
            raise
        return kernel

    def prepare(self, environment: Mapping[str, str], cwd: Path | None = None) -> None:
        """Hand the run's variables, and its folder, to a kernel that runs; they appear in no history and no output."""
        move = f"; __import__('os').chdir({str(cwd)!r})" if cwd else ""
        self.silently(f"__import__('os').environ.update({dict(environment)!r}){move}", 30)

    def silently(self, code: str, seconds: float) -> None:
        """Execute `code` so that it appears in no history and no output.

        Raises
        ------
        Unavailable
            It raised; with its error.
        RuntimeError
            No answer came within `seconds`, or the kernel died.
        """
        answer = self._ask(self.client.execute(code, silent=True, store_history=False), seconds)
        if answer["status"] != "ok":
            verdict = f"could not do what the run needs: {answer.get('ename', '')}: {answer.get('evalue', '')}"
            raise Unavailable("kernel", self.pid, verdict, "look at the runner's log")

    def drain(self) -> None:
        """Drop what the kernel told to everybody while nobody listened here; a full queue would lose what comes next."""
        from queue import Empty

        from jupyter_core.utils import run_sync

        while True:
            try:
                run_sync(self.client.get_iopub_msg)(timeout=0.01)
            except Empty:
                return

    def _ask(self, message: str, timeout: float) -> dict[str, Any]:
        """Return the content of the answer to `message`; raises RuntimeError after `timeout` seconds."""
        from queue import Empty

        from jupyter_core.utils import run_sync

        end = time.monotonic() + timeout
        while time.monotonic() < end and self.alive():
            try:
                answer = run_sync(self.client.get_shell_msg)(timeout=1)
            except Empty:
                continue
            if answer["parent_header"].get("msg_id") == message:
                content: dict[str, Any] = answer["content"]
                return content
        raise RuntimeError("it died" if not self.alive() else f"no answer in {timeout:.0f} s")

    def alive(self) -> bool:
        process = self.manager.provisioner.process if self.manager.provisioner else None
        return process is not None and process.poll() is None

    def packages(self) -> dict[str, str]:
        """Return the versions of what the kernel has imported, as the modules say; nothing if it does not answer at once."""
        asked = self.client.execute("", silent=True, store_history=False, user_expressions={"v": VERSIONS})
        try:
            told = self._ask(asked, 5)["user_expressions"]["v"]["data"]["text/plain"]
            return dict(json.loads(ast.literal_eval(told)))
        except (RuntimeError, KeyError, ValueError, SyntaxError):
            return {}

    def give_in(self, seconds: float) -> bool:
        """Interrupt what the kernel computes; return whether it answers again within `seconds`."""
        self.interrupt()
        try:
            self._ask(self.client.kernel_info(), seconds)
        except RuntimeError:
            return False
        return True

    def interrupt(self) -> None:
        _signal(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """End the kernel and whatever it started, at once; from any thread."""
        _signal(self.pid, signal.SIGKILL)

    def stop(self, *, gently: float = 0) -> None:
        """End the kernel; `gently` gives it that many seconds to run its exit handlers. Nothing of its group is left. May be called twice."""
        from jupyter_core.utils import run_sync

        if gently and self.alive():
            self.client.shutdown()
            end = time.monotonic() + gently
            while self.alive() and time.monotonic() < end:
                time.sleep(0.02)
        self.kill()
        if self.manager.provisioner and self.manager.provisioner.process:
            self.manager.provisioner.process.wait()
        self.client.stop_channels()
        run_sync(self.manager.cleanup_resources)()


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _manager(folder: Path, name: str, zygote: Zygote | None = None) -> Any:
    """Return a manager over ipc: no port that another kernel could take first, no door for other accounts."""
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from jupyter_client.manager import AsyncKernelManager

    class CellClient(AsyncKernelClient):  # type: ignore[misc]
        """Names the cell in each execute request, as JupyterLab does; its base has no parameter for the metadata."""

        cell_id = ""

        def execute(
            self, code: str, silent: bool = False, store_history: bool = True, user_expressions: dict[str, Any] | None = None,
            allow_stdin: bool | None = None, stop_on_error: bool = True,
        ) -> str:  # fmt: skip
            content = {
                "code": code, "silent": silent, "store_history": store_history, "user_expressions": user_expressions or {},
                "allow_stdin": bool(allow_stdin), "stop_on_error": stop_on_error,
            }  # fmt: skip
            message = self.session.msg(
                "execute_request", content, metadata={"cellId": self.cell_id} if self.cell_id else {}
            )
            self.shell_channel.send(message)
            identity: str = message["header"]["msg_id"]
            return identity

    manager = AsyncKernelManager(kernel_name=name, transport="ipc", connection_file=str(folder / "kernel.json"))
    manager.client_factory = CellClient
    if zygote and zygote.alive():
        manager.kernel_id = manager.kernel_id or uuid.uuid4().hex
        manager.provisioner = forking(zygote)(
            kernel_id=manager.kernel_id, kernel_spec=manager.kernel_spec, parent=manager
        )
    return manager


def forking(zygote: Zygote) -> Any:
    """Return a provisioner that asks `zygote` for the kernel's process."""
    from jupyter_client.provisioning.local_provisioner import LocalProvisioner

    class Provisioner(LocalProvisioner):  # type: ignore[misc]
        async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
            asked = {"argv": cmd[cmd.index("-f") :], "env": options.get("env") or {}, "cwd": options.get("cwd") or "."}
            try:
                self.process = zygote.fork(asked)
            except (OSError, ValueError):
                return await super().launch_kernel(cmd, **options)
            self.pid = self.pgid = self.process.pid
            self.cwd = options.get("cwd")
            return self.connection_info

    return Provisioner
