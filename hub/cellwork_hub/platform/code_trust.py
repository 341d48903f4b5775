"""Whose word lets code of an author's own run on the platform: for the bytes of a wheel, in one project; in `team` trust not the author's own.

A word once given stays: what was scored and served under it is in the log. What it lets run runs as the platform's child processes do.
"""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from cellwork import clock, ids
from cellwork.errors import BadInput, Refused
from cellwork.models import package, wheels
from cellwork.models.versions import Version
from cellwork.wire.gate import Trusted, TrustRequest
from cellwork_hub import records
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call


def found(state: State, project: str, folder: Path) -> list[Trusted | wheels.Wheel]:
    """Return for each wheel of a model folder the word for it, or the wheel itself where there is none."""
    query = text("SELECT record FROM code_trust WHERE project = :p AND sha256 = :s")
    words: list[Trusted | wheels.Wheel] = []
    with state.engine.connect() as db:
        for wheel in package.read(folder).wheels:
            record = db.execute(query, {"p": project, "s": wheel.sha256}).scalar()
            words.append(msgspec.json.decode(record, type=Trusted) if record else wheel)
    return words


def lay(state: State, project: str, folder: Path) -> None:
    """Lay the words that were given beside the platform's copy of a model folder, where what loads it looks."""
    for word, wheel in zip(found(state, project, folder), package.read(folder).wheels, strict=True):
        if isinstance(word, Trusted):
            wheels.trust(folder, [wheel], word.by)


def give(state: State, call: Call, request: TrustRequest, version: Version, folder: Path) -> list[Trusted]:
    """Keep the caller's word for the wheels of a version.

    Raises
    ------
    BadInput
        It brings no code of its own.
    Refused
        In `team` trust: the version is the caller's own.
    """
    there = package.read(folder).wheels
    if not there:
        raise BadInput("version", version.subject, "brings no code of its own", "it needs nobody's trust")
    if call.bounded and version.tags.get("user") == call.principal.name:
        raise Refused(
            "version",
            version.subject,
            f"was made by {call.principal.name!r}, whose word does not count for it",
            "ask somebody else to look at it",
        )
    project = ids.split_name(version.name)[0]
    for wheel in there:
        word = Trusted(
            project=project, sha256=wheel.sha256, file=Path(wheel.file).name, version=version.ref, by=call.principal.name,
            at=clock.now(), reason=request.reason,
        )  # fmt: skip
        values = {"p": project, "s": wheel.sha256, "r": msgspec.json.encode(word).decode()}
        with contextlib.suppress(IntegrityError), state.engine.begin() as db:  # somebody trusted it before
            db.execute(text("INSERT INTO code_trust VALUES (:p, :s, :r)"), values)
            records.audit(
                db,
                call,
                "code.trust",
                version.subject,
                after={"wheel": word.file, "sha256": word.sha256},
                reason=request.reason,
            )
    lay(state, project, folder)
    return [word for word in found(state, project, folder) if isinstance(word, Trusted)]


def look(folder: Path) -> dict[str, str]:
    """Return path -> source of all that a version's wheels would run."""
    sources: dict[str, str] = {}
    for wheel in package.read(folder).wheels:
        with zipfile.ZipFile(folder / wheels.FOLDER / Path(wheel.file).name) as archive:
            sources |= {
                f"{Path(wheel.file).name}/{name}": archive.read(name).decode(errors="replace")
                for name in archive.namelist()
                if name.endswith(".py")
            }
    return sources
