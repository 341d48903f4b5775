from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cellwork import files
from cellwork.errors import Conflict


def test_a_reader_sees_the_old_or_the_new_content_and_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "pointer"
    old, new = b"a" * 200_000, b"b" * 300_000
    files.write(path, old)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        files.write(path, new)
        files.write(path, old)
    stop.set()
    reader.join(60)
    assert seen <= {old, new}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_gets_the_mode_asked_for(tmp_path: Path) -> None:
    files.write(tmp_path / "secret", "x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_second_holder_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with (
        files.locked(tmp_path / "lock", "the first"),
        pytest.raises(Conflict, match="held by the first"),
        files.locked(tmp_path / "lock", "the second"),
    ):
        pass


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    code = f"import time; from pathlib import Path; from cellwork import files\nwith files.locked(Path({str(tmp_path / 'lock')!r}), 'child'):\n    print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Conflict), files.locked(tmp_path / "lock", "me"):
            pass
        child.kill()
        child.wait(60)
    with files.locked(tmp_path / "lock", "me"):
        pass
