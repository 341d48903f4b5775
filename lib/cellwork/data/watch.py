"""A folder whose files become batches as they come: looked at again and again, by whoever wants it, over HTTP.

A file is sent once it did not change between two looks, so that a copy in progress is not; a hidden file (``.part``) never is. What
was sent is remembered while the watching lasts. After a restart everything is sent again, which changes nothing: the same delivery is one
batch, and an older delivery does not undo its correction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cellwork.data.ingest import data_files, ingest, partition_of
from cellwork.errors import CellworkError, TooBusy, Unavailable

State = tuple[int, int]
"""Size and time of change in nanoseconds."""


class Folder:
    """What is known of a folder: `look` sends what is ready."""

    def __init__(
        self, dataset: str, folder: str | Path, *, project: str | None = None, nulls: Sequence[str] = ("",)
    ) -> None:
        self.dataset, self.folder, self.project, self.nulls = dataset, Path(folder), project, nulls
        self.refused: dict[Path, str] = {}
        """Files that can't be taken as they are, and why."""
        self._seen: dict[Path, State] = {}
        self._done: dict[Path, State] = {}

    def look(self) -> list[str]:
        """Send every file that is new or changed and stood still since the last look; returns what happened, a line each."""
        there = {path: _state(path) for path in data_files(self.folder)}
        ready = [p for p, state in there.items() if state and self._seen.get(p) == state and self._done.get(p) != state]
        self._seen = {path: state for path, state in there.items() if state}
        return [self._send(path, self._seen[path]) for path in ready]

    @property
    def waiting(self) -> bool:
        """Whether files are there that were not tried as they are now."""
        return any(self._done.get(path) != state for path, state in self._seen.items())

    def _send(self, path: Path, state: State) -> str:
        try:
            partition = partition_of(path)
            taken = ingest(self.dataset, path, partition, project=self.project, nulls=self.nulls)
        except (Unavailable, TooBusy) as error:
            return f"{path.name} waits: {error}"
        except CellworkError as error:
            self._done[path], self.refused[path] = state, str(error)
            return f"{path.name} is refused: {error}"
        self._done[path] = state
        self.refused.pop(path, None)
        return f"{path.name} is {taken.batch.id}, {taken.batch.rows:,} rows" + ("" if taken.new else ", there already")

    def follow(self, *, every: float, tell: Callable[[str], object], once: bool = False) -> None:
        """Look every `every` seconds, for ever or with `once` until everything was tried."""
        while True:
            for line in self.look():
                tell(line)
            if once and not self.waiting:
                return
            time.sleep(every)


def _state(path: Path) -> State | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None  # taken away between listing and looking
    return found.st_size, found.st_mtime_ns
