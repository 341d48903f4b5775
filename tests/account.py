"""A second account of the machine: commands run under another uid, which can read this installation but not CELLWORK_HOME.

Where a folder on the way to the interpreter or the checkout is closed to others (a home of mode 0700, say), the command
sees it, in a mount namespace of its own, as an empty open folder that holds only those paths. Nothing outside changes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from need import need

UID = 65_532


class Account:
    """Runs commands as uid 65532 with a home folder of its own."""

    def __init__(self, folder: Path) -> None:
        need(
            os.geteuid() == 0 and bool(shutil.which("unshare")) and bool(shutil.which("setpriv")),
            "root, unshare and setpriv, for a second account",
        )
        self.folder = folder
        self.home = folder / "account"
        self.home.mkdir()
        os.chown(self.home, UID, UID)
        self._shown: dict[Path, Path] = {}

    def show(self, path: Path) -> Path:
        """Return where the account's commands find `path` itself, whoever closed the folders above it: only its own mode counts."""
        place = self.folder / f"shown{len(self._shown)}"
        place.mkdir()
        self._shown[place] = path
        return place

    def start(self, command: list[str], environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start `command` in the account's home with exactly `environ` (and PATH, HOME); output goes to `log`."""
        full = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            **environ,
        }
        script = f"{self._mounts()} exec setpriv --reuid={UID} --regid={UID} --clear-groups {shlex.join(command)}"
        with log.open("wb") as output:
            return subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script],
                env=full,
                cwd=self.home,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, command: list[str], environ: Mapping[str, str], *, timeout: float = 120) -> tuple[int, str]:
        """Return exit code and output."""
        log = self.home.parent / "account.log"
        process = self.start(command, environ, log)
        try:
            return process.wait(timeout), log.read_text()
        finally:
            if process.poll() is None:
                process.kill()

    def _mounts(self) -> str:
        """Shell commands that open the way to what the account needs: each closed folder becomes an open one with only that in it."""
        needed = [
            Path(sys.base_prefix).resolve(),
            Path(sys.prefix).absolute(),
            Path(__file__).resolve().parents[1],
            self.home,
        ]
        closed: dict[Path, list[Path]] = {}
        for path in needed:
            blocking = next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)
            if blocking:
                closed.setdefault(blocking, []).append(path)
        lines = [f"mount --bind {path} {place}" for place, path in self._shown.items()]
        for number, (folder, paths) in enumerate(closed.items()):
            stage = self.folder / f"stage{number}"
            for k, path in enumerate(paths):
                lines += [f"mkdir -p {stage}/{k}", f"mount --bind {path} {stage}/{k}"]
            lines.append(f"mount -t tmpfs -o mode=755 none {folder}")
            if stage.is_relative_to(folder):
                raise NotImplementedError(f"{stage} lies under the closed folder {folder}; set TMPDIR elsewhere")
            for k, path in enumerate(paths):
                lines += [f"mkdir -p {path}", f"mount --bind {stage}/{k} {path}"]
        return " && ".join([*lines, "true"]) + " &&"
