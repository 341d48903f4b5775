"""What a build sees: the image's folder, the tested versions, what each extra needs, and the library as a wheel. Nothing else.

The same content gives the same hash on every machine, and with it the same image is not made twice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from cellwork import assets
from cellwork.errors import NotFound, Unavailable

SHARED = ("cellwork-install", "cellwork-server", "cellwork-shrink")
"""Programs of `base` that images without it need too."""
NEEDS = {
    "base": ("", "lab", "jobs"),
    "cpu": ("jupyter", "scheduler", "boost", "tune", "timeseries", "examples"),
    "serve": ("", "serve"),
}
"""What `<name>.txt` lists: extras of the distribution, "" is what it always needs."""
BUILD_SECONDS = 300
UV = Path(sys.executable).parent / "uv"
"""Builds a wheel sooner than the `build` package does; used where it is installed."""


def write(image: Path, target: Path, *, library: bool = True) -> str:
    """Write the context of the image whose folder is `image` into `target`, with or without the library; return its content hash."""
    shutil.copytree(image, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "README.md"))
    base = assets.folder("images") / "base"
    for name in SHARED:
        if not (target / name).exists():
            shutil.copy2(base / name, target / name)
    ours = target / "context"
    (ours / "wheel").mkdir(parents=True)
    shutil.copy2(assets.file("constraints.txt"), ours / "constraints.txt")
    for name, extras in NEEDS.items():
        (ours / f"{name}.txt").write_text("".join(f"{line}\n" for line in requirements(extras)))
    (ours / "verify").mkdir()
    shutil.copy2(base / "checks.py", ours / "verify" / "checks.py")
    for name in names():
        shutil.copy2(folder(name) / "verify", ours / "verify" / name)
        (ours / "verify" / name).chmod(0o755)
    if library:
        wheel(ours / "wheel")
    return content(target)


def requirements(extras: Iterable[str]) -> list[str]:
    """Return what the installed distribution needs for `extras`, without their conditions on them."""
    from packaging.requirements import Requirement

    found = set()
    for extra in extras:
        for text in importlib.metadata.requires("cellwork") or []:
            requirement = Requirement(text)
            marker = str(requirement.marker or "")
            if ("extra ==" in marker) != bool(extra) or requirement.name == "cellwork":
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                requirement.marker = None
                found.add(str(requirement))
    return sorted(found)


def wheel(target: Path) -> Path:
    """Put a wheel of this installation into `target`: built from the checkout, or packed again from what a wheel installed."""
    distribution = importlib.metadata.distribution("cellwork")
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        return _built(checkout, target)
    name = f"cellwork-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(target / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(distribution.files or [], key=str):
            path = Path(str(file.locate()))
            if (
                ".." in file.parts
                or path.suffix == ".pyc"
                or file.name in ("INSTALLER", "direct_url.json", "REQUESTED")
            ):
                continue
            archive.writestr(zipfile.ZipInfo(str(file), (2020, 2, 2, 0, 0, 0)), path.read_bytes())
    return target / name


def _built(checkout: Path, target: Path) -> Path:
    tool = [str(UV), "build"] if UV.is_file() else [sys.executable, "-m", "build"]
    words = [*tool, "--wheel", "-o", str(target), str(checkout)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    found = next(target.glob("*.whl"), None)
    if done.returncode or found is None:
        raise Unavailable(
            "wheel", checkout, f"can't be built: {done.stderr.strip()[-400:]}", "run: pip install build, then try again"
        )
    for other in target.iterdir():
        if other != found:
            other.unlink()
    return found


def content(folder: Path) -> str:
    """Return the hash of all files below `folder`: their names, modes and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {path.stat().st_mode & 0o111:o} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def folder(name: str) -> Path:
    """Return the folder of our image `name`."""
    path = assets.folder("images") / name
    if not (path / "Containerfile").is_file():
        raise NotFound("image", name, "is none of ours", f"there are: {', '.join(names())}")
    return path


def names() -> list[str]:
    return sorted(path.parent.name for path in assets.folder("images").glob("*/Containerfile"))
