"""What published pages last showed: kept in files, bounded, whole after a crash, and shown without anything that runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import DAY
from running import wait_for

from cellwork_hub import views
from cellwork_hub.still import NEEDS, still

PAGE = "/voila/render/report.ipynb?"


def test_a_view_is_found_by_what_was_asked_with_when_it_was_whole(tmp_path: Path) -> None:
    folder = tmp_path / "views"
    views.keep(folder, PAGE, DAY, b"<p>42</p>")
    views.keep(folder, f"{PAGE}day=2", DAY + timedelta(days=1), b"<p>43</p>")
    found = views.find(folder, PAGE)
    assert found is not None
    assert (found.page, found.about.made) == (b"<p>42</p>", DAY)
    assert views.front(folder) == found.about, "what a page shows without a question stands for it"
    assert views.find(folder, f"{PAGE}day=3") is None
    views.keep(folder, PAGE, DAY + timedelta(days=2), b"<p>44</p>")
    assert views.about(folder, PAGE) == views.About(asked=PAGE, made=DAY + timedelta(days=2))


def test_nobody_else_of_the_machine_reads_what_is_kept(tmp_path: Path) -> None:
    views.keep(tmp_path / "views", PAGE, DAY, b"x")
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "views", *(tmp_path / "views").iterdir())]
    assert modes == [0o700, 0o600]


def test_what_is_forgotten_is_gone_twice_too(tmp_path: Path) -> None:
    views.keep(tmp_path / "views", PAGE, DAY, b"x")
    for _ in range(2):
        views.forget(tmp_path / "views")
        assert not (tmp_path / "views").exists()
        assert views.front(tmp_path / "views") is None


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3000)), max_size=60), st.integers(1, 5))
def test_it_is_bounded_in_number_and_bytes_and_holds_what_came_last(brought: list[tuple[int, int]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(views, "MOST_VIEWS", most)
        patch.setattr(views, "MOST_KEPT", 4000)
        for number, size in brought:
            views.keep(Path(folder), f"{PAGE}{number}", DAY, os.urandom(size))
            assert len(list(Path(folder).iterdir())) <= most
            assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= 4000
            found = views.find(Path(folder), f"{PAGE}{number}")
            assert found is not None
            assert len(found.page) == size


def test_a_page_too_large_to_be_kept_leaves_no_older_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views.keep(tmp_path, PAGE, DAY, b"small")
    monkeypatch.setattr(views, "MOST_KEPT", 1000)
    views.keep(tmp_path, PAGE, DAY, os.urandom(5000))
    assert views.find(tmp_path, PAGE) is None


@pytest.mark.parametrize("content", [b"", b"no json\nx", b'{"asked":"a","made":"2013-01-01T00:00:00Z"}\nnot packed'])
def test_a_file_that_is_no_view_is_none(tmp_path: Path, content: bytes) -> None:
    views.keep(tmp_path, PAGE, DAY, b"x")
    next(tmp_path.iterdir()).write_bytes(content)
    assert views.find(tmp_path, PAGE) is None


WRITER = """
import sys, pathlib
from datetime import UTC, datetime
from cellwork_hub import views
for number in range(1_000_000):
    views.keep(pathlib.Path(sys.argv[1]), "/p?", datetime.now(UTC), str(number % 10).encode() * 300_000)
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_view(tmp_path: Path) -> None:
    folder = tmp_path / "views"
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
        found = wait_for(lambda: views.find(folder, "/p?"), 10, "a whole view")
        assert re.fullmatch(rb"(\d)\1{299999}", found.page)


def output(**data: object) -> bytes:
    text = msgspec.json.encode(
        {"output_type": "display_data", "data": {k.replace("__", "/"): v for k, v in data.items()}}
    )
    escaped = text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
    return b'<script type="application/vnd.voila.cell-output+json">\n' + escaped + b"\n</script>"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"text__html": "<table><td>42</td></table>", "text__plain": "none"}, b"<table><td>42</td></table>"),
        ({"text__html": ["<b>1</b>", "<b>2</b>"]}, b"<b>1</b><b>2</b>"),
        ({"image__png": "iVBORw==\n", "text__plain": "<Figure>"}, b"<img src='data:image/png;base64,iVBORw=='>"),
        ({"image__svg+xml": "<svg></svg>"}, b"<svg></svg>"),
        ({"text__plain": "a < b"}, b"<pre>a &lt; b</pre>"),
        ({"text__html": "<script>draw()</script>"}, NEEDS.encode()),
        ({"application__vnd.jupyter.widget-view+json": {}, "text__plain": "Button()"}, NEEDS.encode()),
        ({"application__vnd.plotly.v1+json": {}}, NEEDS.encode()),
    ],
)
def test_what_cells_showed_is_written_where_a_program_would_draw_it(data: dict[str, object], shown: bytes) -> None:
    page = b"<html><body class='jp'><div>" + output(**data) + b"</div></body></html>"
    made = still(page, b"<p>banner</p>")
    assert shown in made
    assert b"<script" not in made
    assert made.index(b"banner") < made.index(shown)


def test_of_a_page_without_its_server_nothing_runs_and_nothing_is_asked_for() -> None:
    made = still(
        b"<head><link rel=stylesheet href=x><SCRIPT src='a.js'></SCRIPT></head><body><pre>7</pre><script>f()</script></body>"
    )
    assert b"script" not in made.lower()
    assert b"<link" not in made
    assert b"<pre>7</pre>" in made
