"""Score Parquet to Parquet with a compiled model: a row group at a time, one file each, whatever the size of the table.

A part is written beside its place and renamed, so it is there whole or not at all; the same call again goes on with the parts
that are missing. `plan.json` in the target says of which table and program its parts are: parts of another are never mixed in.
Memory is a few batches a thread; the machine's trees are walked without Python's lock, so threads use every core.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import files
from cellwork.errors import BadInput, Conflict, NotFound, near_miss
from cellwork.wire import Struct

if TYPE_CHECKING:
    from cellwork.models.compiled import Machine

ROWS_AT_ONCE = 65_536


class Plan(Struct):
    """What the parts in a target are of: the table as it is, the program, and what is written."""

    source: str
    bytes: int
    modified_ns: int
    program: str
    keep: list[str]
    column: str


class Scored(Struct):
    rows: int
    parts: int
    skipped: int
    """Parts that were there already."""


def score_parquet(
    source: Path, target: Path, machine: Machine, *, keep: Sequence[str] = (), column: str = "score", threads: int = 0
) -> Scored:
    """Write the scores of every row of the Parquet file `source` as files into the folder `target`, beside the columns to `keep`.

    Parameters
    ----------
    threads
        How many row groups at once; default: one a core.

    Raises
    ------
    NotFound
        There is no such file.
    BadInput
        A column that the model takes or that is to be kept is not in it, or a value that the model refuses.
    Conflict
        The target holds parts of another table, another state of it, or another model.
    """
    import pyarrow.parquet as pq

    if not source.is_file():
        raise NotFound("table", source, "is not there", "check its path")
    metadata = pq.read_metadata(source)
    names = [taken.name for taken in machine.program.columns]
    _check_columns([*names, *keep], pq.read_schema(source).names, source)
    if column in keep:
        raise BadInput("column", column, "is kept, and the scores are to have its name", "name the scores otherwise")
    target.mkdir(parents=True, exist_ok=True)
    _check_plan(target, _plan(source, machine, keep, column))
    groups = [group for group in range(metadata.num_row_groups) if not part(target, group).exists()]

    def score(group: int) -> None:
        _score_group(source, part(target, group), group, machine, names, keep, column)

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(score, groups))
    return Scored(rows=metadata.num_rows, parts=metadata.num_row_groups, skipped=metadata.num_row_groups - len(groups))


def part(target: Path, group: int) -> Path:
    return target / f"part-{group:05}.parquet"


def _check_columns(wanted: Sequence[str], there: Sequence[str], source: Path) -> None:
    missing = next((name for name in wanted if name not in there), None)
    if missing:
        raise BadInput("column", missing, f"is not in {source.name}", near_miss(missing, there))


def _plan(source: Path, machine: Machine, keep: Sequence[str], column: str) -> Plan:
    about = source.stat()
    program = hashlib.sha256(msgspec.msgpack.encode(machine.program)).hexdigest()
    return Plan(
        source=str(source.resolve()),
        bytes=about.st_size,
        modified_ns=about.st_mtime_ns,
        program=program,
        keep=list(keep),
        column=column,
    )


def _check_plan(target: Path, plan: Plan) -> None:
    file = target / "plan.json"
    if not file.exists():
        if any(target.glob("part-*.parquet")):
            raise Conflict("target", target, "holds parts of nobody knows what", "choose an empty folder")
        files.write(file, msgspec.json.encode(plan))
        return
    if msgspec.json.decode(file.read_bytes(), type=Plan) != plan:
        raise Conflict(
            "target",
            target,
            "holds scores of another table, of an earlier state of it, or of another model",
            "choose an empty folder",
        )


def _score_group(
    source: Path, place: Path, group: int, machine: Machine, names: Sequence[str], keep: Sequence[str], column: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    beside, writer = place.with_suffix(".new"), None
    try:
        for batch in _batches(source, group, [*dict.fromkeys([*names, *keep])]):
            scores = machine.of_columns([_numbers(batch.column(name)) for name in names])
            table = pa.table({**{name: batch.column(name) for name in keep}, column: scores})
            writer = writer or pq.ParquetWriter(beside, table.schema, compression="zstd", use_dictionary=False)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()
    if writer:
        beside.replace(place)


def _batches(source: Path, group: int, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False)


def _numbers(values: Any) -> Any:
    """Return an Arrow array as float64, NaN where there is no value."""
    import pyarrow as pa

    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
