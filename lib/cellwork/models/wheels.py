"""Code of an author's own that a model needs: a pure wheel in the model's folder, which runs where a named person trusted just these bytes.

Trust lies beside a folder, in a file that whoever owns the place writes, never in the folder, which is the author's. A wheel is put at the
end of the path of a process that loads the model and of no other, so that it hides nothing that is installed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import msgspec

from cellwork import clock, files
from cellwork.errors import BadInput, Refused
from cellwork.wire import Struct

FOLDER = "wheels"
OURS = frozenset({"cellwork", "cellwork_hub", "cellwork_jupyter", "__main__"})
STAMP = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a wheel: equal code makes equal bytes."""


class Wheel(Struct):
    """A wheel in a model folder."""

    file: str
    sha256: str
    modules: list[str]
    """What it brings at the top level; read from the wheel itself before it is believed."""


class Trust(Struct):
    """Whose word it is that a wheel may run here."""

    sha256: str
    by: str
    at: str


def build(code: ModuleType | Path, folder: Path) -> Path:
    """Write a wheel of a module or package into `folder` and return it; a wheel is copied.

    Raises
    ------
    BadInput
        It has no source file, e.g. because it was typed into a notebook.
    """
    source = Path(code) if isinstance(code, Path) else _source(code)
    folder.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".whl":
        target = folder / source.name
        target.write_bytes(source.read_bytes())
        return target
    name = source.stem
    content = {path.relative_to(source.parent).as_posix(): path.read_bytes() for path in _files(source)}
    version = f"0+{hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()[:12]}"
    about = f"{name}-{version}.dist-info"
    content[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    content[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: cellwork\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{path},sha256={_short(data)},{len(data)}" for path, data in content.items()]
    content[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""]).encode()
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in content.items():
            archive.writestr(zipfile.ZipInfo(path, STAMP), data, zipfile.ZIP_DEFLATED)
    return target


def _source(module: ModuleType) -> Path:
    file = getattr(module, "__file__", None)
    if not file:
        raise BadInput("module", module.__name__, "has no file", "write its classes into a .py file and import that")
    return Path(file).parent if Path(file).name == "__init__.py" else Path(file)


def _files(source: Path) -> Sequence[Path]:
    if not source.exists():
        raise BadInput("code", source, "does not exist", "give a module, a .py file, a package's folder or a wheel")
    return sorted(path for path in source.rglob("*.py") if path.is_file()) if source.is_dir() else [source]


def _short(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def describe(path: Path) -> Wheel:
    """Return what a wheel brings.

    Raises
    ------
    BadInput
        It is no wheel of pure Python, or brings a module that is installed here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if ".dist-info/" not in name]
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput("wheel", path.name, f"can't be read: {error}", "build it again") from None
    if not path.name.endswith("-none-any.whl") or any(not name.endswith(".py") for name in names):
        raise BadInput("wheel", path.name, "is not of pure Python alone", "leave compiled parts to installed packages")
    modules = sorted({name.partition("/")[0].removesuffix(".py") for name in names})
    taken = [name for name in modules if name in OURS or name in sys.stdlib_module_names or name in _installed()]
    if taken:
        raise BadInput(f"module of wheel {path.name}", taken[0], "is the name of one that is installed", "rename it")
    return Wheel(file=f"{FOLDER}/{path.name}", sha256=hashlib.sha256(path.read_bytes()).hexdigest(), modules=modules)


def _installed() -> set[str]:
    return set(importlib.metadata.packages_distributions())


def trusted(folder: Path) -> list[Trust]:
    """Return whose word lies beside a model folder."""
    try:
        return msgspec.json.decode(_beside(folder).read_bytes(), type=list[Trust])
    except FileNotFoundError:
        return []


def trust(folder: Path, wheels: Iterable[Wheel], by: str) -> None:
    """Let the wheels of this folder run here, on the word of `by`."""
    known = {each.sha256: each for each in trusted(folder)}
    for wheel in wheels:
        known.setdefault(wheel.sha256, Trust(sha256=wheel.sha256, by=by, at=clock.now().isoformat()))
    files.write(_beside(folder), msgspec.json.encode(list(known.values())), mode=0o600)


def _beside(folder: Path) -> Path:
    return folder.absolute().parent / f"{folder.name}.trust"


def add_to_path(folder: Path, wheels: Iterable[Wheel]) -> None:
    """Make the modules of a folder's wheels importable in this process.

    Raises
    ------
    Refused
        A wheel is not what the folder says, or nobody trusted it here.
    """
    word = {each.sha256 for each in trusted(folder)}
    for wheel in wheels:
        path = folder / FOLDER / Path(wheel.file).name
        if not path.is_file() or describe(path) != wheel:
            raise Refused(
                "wheel of the model", wheel.file, "is not the one it was registered with", "register it again"
            )
        if wheel.sha256 not in word:
            raise Refused(
                "wheel of the model", f"{Path(wheel.file).name} ({wheel.sha256[:12]})", "brings code that nobody has trusted here",
                "look at it, then: cellwork model trust PROJECT/NAME@VERSION",
            )  # fmt: skip
        if str(path) not in sys.path:
            sys.path.append(str(path))
