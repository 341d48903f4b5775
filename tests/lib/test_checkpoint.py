"""What a kernel holds is saved and put back into another process: values, frames, functions, random numbers; the rest is named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cellwork.errors import Refused
from cellwork.runs import checkpoints, engine, resume, taken
from cellwork.runs.kernel import Kernel, allowed
from cellwork.wire.jobs import Checkpoint

MADE = """
import random
import numpy as np
import pandas as pd
import polars as pl
from collections import Counter
_quiet = 5
scale = 10
rows = [1, 2, 3]
same = rows
frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
table = pd.DataFrame({"when": pd.to_datetime(["2013-01-01", "2013-02-01"]), "kind": pd.Categorical(["u", "v"])}, index=["r", "s"])
odd = pd.DataFrame({"mixed": [1, "two", None]})
also = table
def scaled(x, *, by=1):
    return x * scale * by
def recursive(n):
    return 1 if n < 2 else n * recursive(n - 1)
def counter():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count
tick = counter()
tick()
class Model:
    def predict(self, x):
        return scaled(x) + 1
model = Model()
generator = (k for k in rows)
file = open("/dev/null")
random.seed(3); np.random.seed(3)
random.random(); np.random.rand()
"""
SEEN = """
same.append(4)
seen = [rows, frame.equals(pl.DataFrame({"a": [1, 2], "b": ["x", None]})), str(table.dtypes["when"]), list(table.index), str(table.dtypes["kind"]), also is table, list(odd["mixed"])]
scale = 100
seen += [scaled(2), recursive(5), tick(), model.predict(1), Counter("aab")["a"], _quiet, random.random(), float(np.random.rand())]
"""


def in_a_process(code: str, folder: Path) -> Any:
    program = "import json, sys\nnamespace = {'__name__': '__main__'}\n" + code
    answer = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with what `MADE` makes, and what the process that made it saw afterwards."""
    folder = tmp_path_factory.mktemp("checkpoint") / "made"
    code = f"exec({MADE!r}, namespace)\nfrom cellwork.runs import checkpoint\ncheckpoint.save(sys.argv[1], namespace)\nexec({SEEN!r}, namespace)\nprint(json.dumps(namespace['seen']))"
    return folder, in_a_process(code, folder)


def test_another_process_goes_on_as_if_it_were_the_same(saved: tuple[Path, Any]) -> None:
    folder, expected = saved
    code = f"from cellwork.runs import checkpoint\ncheckpoint.restore(sys.argv[1], namespace)\nexec({SEEN!r}, namespace)\nprint(json.dumps(namespace['seen']))"
    assert in_a_process(code, folder) == expected
    assert expected[7] == 200, "a function sees the names of the notebook, not a copy of them"


def test_frames_are_parquet_and_what_cannot_be_saved_is_named(saved: tuple[Path, Any]) -> None:
    about = json.loads((saved[0] / "saved.json").read_text())
    assert sorted(map(tuple, about["frames"].values())) == [("pandas", "table", "also"), ("polars", "frame")]
    assert sorted(about["missing"]) == ["file", "generator"]
    assert "generator" in about["missing"]["generator"]


LOCKED = """
import threading
lock, plain = threading.Lock(), 3
def locked():
    return [lock for _ in range(1)]
def outer():
    return inner()
def inner():
    return lambda: locked()
def given(lock):
    return plain, object().__class__.lock
class Holder:
    def held(self):
        return outer()
holder, handlers, alone = Holder(), {"x": [inner]}, given
"""


def test_what_would_use_an_unsaved_name_when_it_is_called_is_not_saved_either(tmp_path: Path) -> None:
    """By whatever way it is reached; a local or an attribute of the same name is another's."""
    code = f"exec({LOCKED!r}, namespace)\nfrom cellwork.runs import checkpoint\ncheckpoint.save(sys.argv[1], namespace)\nprint(open(sys.argv[1] + '/saved.json').read())"
    about = in_a_process(code, tmp_path / "made")
    assert sorted(about["missing"]) == ["Holder", "handlers", "holder", "inner", "lock", "locked", "outer"]
    assert about["missing"]["locked"] == "uses lock: it is not saved"
    seen = "from cellwork.runs import checkpoint\ncheckpoint.restore(sys.argv[1], namespace)\nprint(json.dumps([namespace['plain'], 'alone' in namespace, 'locked' in namespace]))"
    assert in_a_process(seen, tmp_path / "made") == [3, True, False]


CACHED = """
import functools, typing
scale = 10
Id = typing.NewType("Id", int)
of = [Id]
@functools.lru_cache(maxsize=7)
def scaled(x):
    return x * scale
again = scaled
class Model:
    @functools.cache
    def predict(self):
        return scaled(2)
scaled(1)
"""


def test_what_pickle_would_only_write_the_name_of_is_put_back_and_a_cache_is_empty(tmp_path: Path) -> None:
    """By name nothing of it could be read, in a kernel that has run nothing; a second checkpoint holds it as well."""
    code = f"exec({CACHED!r}, namespace)\nimport __main__\n__main__.__dict__.update(namespace)\nfrom cellwork.runs import checkpoint\ncheckpoint.save(sys.argv[1], namespace)\nprint(open(sys.argv[1] + '/saved.json').read())"
    assert in_a_process(code, tmp_path / "made")["missing"] == {}
    seen = "from cellwork.runs import checkpoint\ncheckpoint.restore(sys.argv[1], namespace)\ncheckpoint.save(sys.argv[1] + 'again', namespace)\nnamespace['scale'] = 100\nexec('seen = [scaled(1), Model().predict(), again is scaled, scaled.cache_info().maxsize, of[0] is Id, Id(3), Id.__name__]', namespace)\nprint(json.dumps(namespace['seen']))"
    assert in_a_process(seen, tmp_path / "made") == [100, 200, True, 7, True, 3, "Id"]
    assert json.loads((tmp_path / "madeagain" / "saved.json").read_text())["missing"] == {}


def page(*sources: str, tagged: int = 0) -> dict[str, Any]:
    return {
        "nbformat": 4, "nbformat_minor": 5, "metadata": {},
        "cells": [
            {"cell_type": "code", "id": f"c{k}", "metadata": {"tags": ["checkpoint"] if k == tagged else []}, "source": source, "outputs": [], "execution_count": None}
            for k, source in enumerate(sources, start=1)
        ],
    }  # fmt: skip


def test_a_checkpoint_fits_as_long_as_nothing_above_it_changed_and_nothing_below_needs_what_is_missing() -> None:
    notebook = page("a = 1", "b = 2", "print(a, b)", tagged=2)
    key = checkpoints.keys(notebook, {"x": 1})[1]
    at = Checkpoint(key=key, cell=2, missing={"generator": "generator"})
    assert checkpoints.choose(notebook, {"x": 1}, [at]) == at
    assert checkpoints.choose(page("a = 1", "b = 2", "print(b, a)"), {"x": 1}, [at]) == at
    assert checkpoints.choose(page("a = 9", "b = 2", "print(a, b)"), {"x": 1}, [at]) is None
    assert checkpoints.choose(notebook, {"x": 2}, [at]) is None, "another parameter"
    assert checkpoints.choose(page("a = 1", "b = 2", "next(generator)"), {"x": 1}, [at]) is None
    assert checkpoints.choose(page("a = 1", "b = 2", "%time next(generator)"), {"x": 1}, [at]) is None
    assert checkpoints.choose(page("a = 1", "b = 2", "generator = 5"), {"x": 1}, [at]) == at
    assert checkpoints.choose(page("a = 1", "b = 2", "generator += 5"), {"x": 1}, [at]) is None
    assert checkpoints.choose(page("a = 1", "b = 2"), {"x": 1}, [at]) is None, "nothing is left to run"


def test_a_run_saves_at_the_tagged_cell_and_another_kernel_goes_on_below_it(tmp_path: Path) -> None:
    """Two real kernels; files that the first made in its folder are there for the second."""
    notebook = page(
        "import pathlib\nstate = {'n': 1}\ngen = iter([1])\n_c, _os = 7, 8",
        "pathlib.Path('made.txt').write_text('by the first')",
        "print(state, _c, _os, pathlib.Path('made.txt').read_text())\n1 / fails",
        tagged=2,
    )
    work, taken = tmp_path / "work", list[tuple[Checkpoint, bytes]]()
    work.mkdir()
    (work / "n.ipynb").write_text(json.dumps(notebook))
    keeper = checkpoints.Checkpoints(
        tmp_path / "saving", work, {}, lambda about, data: taken.append((about, data)) or None
    )
    kernels = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        kernels.append(Kernel.start(tmp_path / name, allowed(os.environ)))
    try:
        with pytest.raises(engine.RunFailed):
            engine.execute(work / "n.ipynb", tmp_path / "out.ipynb", cwd=work, kernel=kernels[0], checkpoints=keeper)
        ((about, data),) = taken
        assert (about.cell, sorted(about.missing)) == (2, [])
        shown = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
        assert any("checkpoint: " in "".join(o.get("text", "")) for cell in shown for o in cell.get("outputs", []))
        other = tmp_path / "other"
        other.mkdir()
        executed = checkpoints.unpack(data, tmp_path / "laid", other)
        notebook["cells"][2]["source"] = "print(state, _c, _os, pathlib.Path('made.txt').read_text())"
        engine.resume(
            resume.merge(executed, notebook, 3),
            tmp_path / "end.ipynb",
            kernels[1],
            first=3,
            name="n.ipynb",
            cwd=other,
            begin=lambda: checkpoints.put_back(kernels[1], tmp_path / "laid"),
        )
        assert "{'n': 1} 7 8 by the first" in (tmp_path / "end.ipynb").read_text()
    finally:
        for kernel in kernels:
            kernel.stop()


@pytest.mark.parametrize(("name", "kind"), [("../evil", tarfile.REGTYPE), ("evil", tarfile.SYMTYPE)])
def test_an_archive_never_writes_outside_its_folder(tmp_path: Path, name: str, kind: bytes) -> None:
    stream, member = io.BytesIO(), tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(member)
    with pytest.raises(Refused, match="is no file of its own"):
        checkpoints.unpack(stream.getvalue(), tmp_path / "in", tmp_path / "work")
    assert not list(tmp_path.rglob("evil"))


def test_only_plain_files_that_lie_in_the_folder_are_taken_of_what_another_wrote(tmp_path: Path) -> None:
    """Neither a link to a file or a folder, nor a pipe, which would be waited for, nor a folder that is a link itself."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs, theirs / "below"):
        folder.mkdir()
    (mine / "secret").write_text("of mine")
    (theirs / "below" / "plain").write_text("theirs")
    (theirs / "link").symlink_to(mine / "secret")
    (theirs / "folder").symlink_to(mine)
    os.mkfifo(theirs / "pipe")
    assert [(str(path), file.read()) for path, file in taken.files(theirs)] == [("below/plain", b"theirs")]
    (tmp_path / "swapped").symlink_to(mine)
    assert list(taken.files(tmp_path / "swapped")) == []
    assert list(taken.files(tmp_path / "none")) == []
