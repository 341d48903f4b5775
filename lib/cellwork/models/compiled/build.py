"""From a model folder to a machine: a child reads the program out, here it is checked and compared, and kept by the model's digest."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cellwork import files
from cellwork.errors import BadInput
from cellwork.models import sandbox
from cellwork.models.compiled import program as programs
from cellwork.models.compiled.child import Found
from cellwork.models.compiled.machine import Machine, worst_difference
from cellwork.wire import Struct

TOLERANCE = 1e-9
"""The largest difference from scikit-learn's scores, relative to max(1, |score|), that a compiled model may show."""
SECONDS = 300
MEMORY_MB = 4096
MOST_BYTES = 256 * 1024**2


class NotCompiled(Exception):
    """Scikit-learn must compute this model; the message says why. `expected` are its scores of the example, if it gave any."""

    def __init__(self, reason: str, expected: Sequence[float] = (), *, final: bool = False) -> None:
        """`final`: the same code says the same of the same model."""
        super().__init__(reason)
        self.expected, self.final = list(expected), final


class Verdict(Struct):
    """Why a model was not compiled, and by which code."""

    by: str
    reason: str
    expected: list[float]


def ensure(folder: Path, digest: str, compiled: Path) -> Machine:
    """Return the machine of the model in `folder`, whose content is `digest`; programs, and why there is none, are kept under `compiled`.

    Raises
    ------
    NotCompiled
        The model has a part that can't be said as a program, or its scores would differ.
    """
    kept = compiled / f"{digest}.program"
    if kept.is_file():
        with contextlib.suppress(BadInput):
            return Machine(programs.read(kept), compiled)
    said = compiled / f"{digest}.verdict"
    if said.is_file():
        with contextlib.suppress(msgspec.MsgspecError):
            verdict = msgspec.json.decode(said.read_bytes(), type=Verdict)
            if verdict.by == _code():
                raise NotCompiled(verdict.reason, verdict.expected, final=True)
    try:
        program, machine = compile_model(folder, compiled)
    except NotCompiled as error:
        if error.final:
            files.write(said, msgspec.json.encode(Verdict(by=_code(), reason=str(error), expected=error.expected)))
        raise
    programs.write(kept, program)
    return machine


@functools.cache
def _code() -> str:
    """Return the digest of the code that reads models out."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def compile_model(folder: Path, compiled: Path | None = None) -> tuple[programs.Program, Machine]:
    """Return program and machine of the model in `folder`, compared with scikit-learn on its example and 200 rows like it."""
    found = _read_out(folder)
    if found.reason:
        raise NotCompiled(f"it can't be compiled: {found.reason}", found.scores, final=True)
    try:
        program = programs.decode(found.program)
        machine = Machine(program, compiled)
        scores = [_score(machine, row) for row in found.rows]
    except (BadInput, ValueError, TypeError) as error:
        raise NotCompiled(f"it can't be compiled: {error}") from None
    worst = worst_difference(scores, found.scores)
    if not found.rows or not worst <= TOLERANCE:
        raise NotCompiled(f"compiled scores differ by {worst:.1e} from scikit-learn's (allowed {TOLERANCE:.0e})")
    return program, machine


def _score(machine: Machine, row: list[object]) -> float:
    try:
        return float(machine.scores([tuple(row)])[0])
    except BadInput:
        return math.nan


def _read_out(folder: Path) -> Found:
    """Run the child under limits, without secrets, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="cellwork-compile-") as home:
        limits = [str(MEMORY_MB), str(SECONDS), str(MOST_BYTES)]
        command = [sys.executable, "-I", "-m", "cellwork.models.compiled.child", str(folder.absolute()), *limits]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
                env=sandbox.environment(home) | {"OMP_NUM_THREADS": "1"}, cwd=home, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                raise NotCompiled(f"reading it took longer than {SECONDS} s") from None
            finally:
                sandbox.end(process)
            if code != 0:
                raise NotCompiled(f"the process that read it ended with {code}")
            output.seek(0, os.SEEK_SET)
            try:
                return msgspec.msgpack.decode(output.read(MOST_BYTES), type=Found)
            except msgspec.MsgspecError:
                raise NotCompiled("what was read out of it is not sound") from None
