"""A run of a notebook: real kernels, fixture notebooks named by their fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from running import gone, wait_for

from cellwork.errors import BadInput, NotFound, Unavailable
from cellwork.runs import engine
from cellwork.runs.kernel import Kernel, allowed

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def text_of(path: Path) -> str:
    """Everything the cells of an executed notebook printed."""
    outputs = [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]
    return "".join(
        "".join(o.get("text", "") or o.get("traceback", "") or o.get("data", {}).get("text/plain", "")) for o in outputs
    )


def execute(name: str, folder: Path, *given: Any, **options: Any) -> Path:
    output = folder / f"{name}.out.ipynb"
    engine.execute(NOTEBOOKS / f"{name}.ipynb", output, *given, **options)
    return output


def test_a_run_takes_its_parameters_and_tells_each_cell(tmp_path: Path) -> None:
    cells: list[tuple[int, int]] = []
    output = execute(
        "works", tmp_path, {"x": 38, "name": "it's {x}"}, progress=lambda cell, of: cells.append((cell, of))
    )
    assert "it's {x} 42" in text_of(output)
    assert cells == [(k, 5) for k in range(1, 6)], "the injected cell counts"
    about = json.loads(output.read_text())["metadata"]["papermill"]
    assert (about["input_path"], about["output_path"], about["exception"]) == ("works.ipynb", "works.out.ipynb", None)


def test_braces_in_a_path_are_no_template(tmp_path: Path) -> None:
    folder = tmp_path / "{x}"
    folder.mkdir()
    (folder / "{name}.ipynb").write_bytes((NOTEBOOKS / "works.ipynb").read_bytes())
    engine.execute(folder / "{name}.ipynb", folder / "{x}.out.ipynb", {"x": 1})
    assert sorted(path.name for path in folder.iterdir()) == ["{name}.ipynb", "{x}.out.ipynb"]


@pytest.mark.parametrize(
    ("name", "options", "cell", "verdict"),
    [
        ("raises_in_cell_3", {}, 3, "ZeroDivisionError: division by zero"),
        ("kernel_dies", {}, 2, "the kernel died"),
        ("hangs", {"timeout": 1.5}, 2, "the run was out of time"),
        ("hangs", {"cell_timeout": 1.0}, 2, "the cell was out of time"),
        ("exits_3", {}, 2, "SystemExit: 3"),
    ],
)
def test_a_failed_run_names_the_cell_and_keeps_the_output_under_papermills_banner(
    tmp_path: Path, name: str, options: dict[str, Any], cell: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the cell that hangs is bound by the time: on a busy machine any other may take longer."""
    import papermill.engines  # noqa: F401, which loads the plugin, which imports papermill

    from cellwork.runs.plugin import Client

    left = Client._seconds_left
    monkeypatch.setattr(Client, "_seconds_left", lambda self, at: left(self, at) if "sleep" in at.source else None)
    with pytest.raises(engine.RunFailed, match=verdict) as caught:
        execute(name, tmp_path, **options)
    assert caught.value.cell == cell
    cells = json.loads((tmp_path / f"{name}.out.ipynb").read_text())["cells"]
    assert "An Exception was encountered" in "".join(cells[0]["source"])
    assert name == "exits_3" or "before" in text_of(tmp_path / f"{name}.out.ipynb")
    assert "after" not in text_of(tmp_path / f"{name}.out.ipynb")


def test_exit_0_is_a_success_that_ends_the_run(tmp_path: Path) -> None:
    assert "after" not in text_of(execute("exits_0", tmp_path))


def test_nothing_starts_when_a_parameter_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        execute("works", tmp_path, {"x = 1\nprint": 1})
    with pytest.raises(NotFound):
        execute("not_there", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "reason"), [("file/out.ipynb", "its folder is a file"), ("folder", "it is a folder")])
def test_an_output_that_cannot_be_written_is_said_before_anything_starts(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    mark = tmp_path / "marks"
    with pytest.raises(BadInput, match=rf"output .*can't be written \({reason}\)"):
        engine.execute(NOTEBOOKS / "marks.ipynb", tmp_path / name, {"folder": str(mark), "seconds": 0.0})
    assert not mark.exists()


def test_an_unknown_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no-such-kernel"):
        execute("works", tmp_path, kernel_name="no-such-kernel")


def test_the_kernel_sees_the_run_and_no_secret_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLWORK_HOME", "/secret")
    monkeypatch.setenv("MY_PASSWORD", "secret")
    (tmp_path / "beside.py").write_text("ANSWER = 42")
    given = {"CELLWORK_RUN": "run_1", "CELLWORK_ATTEMPT": "2"}
    printed = text_of(execute("shows_origin", tmp_path, environment=given, cwd=tmp_path))
    assert "['CELLWORK_ATTEMPT', 'CELLWORK_RUN']" in printed
    assert "run_1 2" in printed
    assert "cell-1" in printed, "the cell's id is in the execute request's metadata"
    assert "42" in printed, "modules beside the notebook import"
    assert "MY_PASSWORD" not in allowed(os.environ)


def test_a_kernel_started_ahead_gets_the_run_afterwards_and_no_history_of_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("ANSWER = 42")
    sockets = tmp_path / "k"
    sockets.mkdir()
    kernel = Kernel.start(sockets, allowed(os.environ))
    try:
        output = execute(
            "shows_origin",
            tmp_path,
            environment={"CELLWORK_RUN": "run_9", "CELLWORK_TOKEN": "tok-123"},
            cwd=tmp_path,
            kernel=kernel,
        )
        assert "run_9" in text_of(output)
        assert "42" in text_of(output)
        assert "tok-123" not in output.read_text()
        assert "tok-123" not in Path(f"/proc/{kernel.pid}/environ").read_text()
    finally:
        kernel.stop()
    kernel.stop()
    assert gone(kernel.pid)


def test_what_a_cell_started_ends_with_the_run(tmp_path: Path) -> None:
    child = int(text_of(execute("leaves_a_child", tmp_path)))
    wait_for(lambda: gone(child), 60, "the end of what was killed")


def test_the_notebook_on_disk_is_whole_at_every_moment_of_the_run(tmp_path: Path) -> None:
    output, broken, seen, over = tmp_path / "out.ipynb", list[str](), set[int](), threading.Event()

    def saved() -> int:
        """Return how many of the cells that are saved have an output."""
        return sum(bool(cell.get("outputs")) for cell in json.loads(output.read_text())["cells"])

    def look() -> None:
        while not over.is_set():
            if output.exists():
                try:
                    saved()
                except ValueError as error:
                    broken.append(str(error))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        engine.execute(
            NOTEBOOKS / "marks.ipynb",
            output,
            {"folder": str(tmp_path), "seconds": 0.3},
            progress=lambda cell, of: seen.add(saved()),
            environment={"CELLWORK_RUN": "r", "CELLWORK_ATTEMPT": "1"},
        )
    finally:
        over.set()
        watcher.join()
    assert broken == []
    assert len(seen) > 1, "it was saved while it ran"


def test_the_engine_works_under_papermills_own_command(tmp_path: Path) -> None:
    """The entry point's target, registered as papermill registers what it finds."""
    code = (
        "import papermill; from papermill.engines import papermill_engines; from cellwork.runs.plugin import CellworkEngine\n"
        "papermill_engines.register('cellwork', CellworkEngine)\n"
        f"papermill.execute_notebook({str(NOTEBOOKS / 'works.ipynb')!r}, {str(tmp_path / 'o.ipynb')!r}, {{'x': 1}}, engine_name='cellwork', progress_bar=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert "sum 5" in text_of(tmp_path / "o.ipynb")
