"""What several processes have counted is told as one, and no counter falls when one of them ends."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cellwork_hub.inference.tally import Tally

PREDICT = ("POST", "/predict/{project}/{name}", 200)


def tally(folder: Path, answered: int, waiting: int = 0) -> Tally:
    made = Tally(folder, Counter({PREDICT: answered}), {PREDICT[:2]: answered / 10}, lambda: waiting, 1000)
    made.open()
    return made


def test_whoever_is_asked_tells_what_all_have_counted(tmp_path: Path) -> None:
    one, other = tally(tmp_path, 3, waiting=2), tally(tmp_path, 4, waiting=5)
    one.write()
    other.counts[PREDICT] += 1  # its own numbers are of now, others' of their last second
    counts, seconds = other.totals()
    assert (counts[PREDICT], seconds[PREDICT[:2]]) == (8, 0.7)
    said = {name: value for name, _, value in other.gauges()}
    assert (said["cellwork_processes"], said["cellwork_waiting_rows"]) == (2, 7)


def test_what_a_process_counted_stays_counted_when_it_ends_and_its_file_goes(tmp_path: Path) -> None:
    for answered in (1, 2, 3):
        tally(tmp_path, answered).close()
    last = tally(tmp_path, 4)
    assert last.totals()[0][PREDICT] == 10
    assert {name: value for name, _, value in last.gauges()}["cellwork_processes"] == 1
    last.write()
    assert sorted(path.name for path in tmp_path.glob("*.counts"))[-1] == "past.counts"
    assert len(list(tmp_path.glob("*.counts"))) == 2


def test_a_file_that_was_torn_is_left_out(tmp_path: Path) -> None:
    one = tally(tmp_path, 3)
    one.write()
    (path,) = (path for path in tmp_path.glob("*.counts") if path.name != "past.counts")
    path.write_bytes(path.read_bytes()[:-3])
    assert tally(tmp_path, 4).totals()[0][PREDICT] == 4
