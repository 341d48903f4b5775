"""The images: made from their folders, known by digest, checked by their own `verify`.

An image carries the hash of what it was made from as a label: the same content is not made twice. What is installed in it is
read out of it and kept in the platform's home under its digest, for as long as somebody may ask what a run ran in.
A build's secrets are mounted while it runs; their paths and contents are in no layer, label or record.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import __version__, files, ids
from cellwork.errors import CellworkError, NotFound, Refused, Unavailable
from cellwork.home import Home
from cellwork.wire import Struct
from cellwork_hub.containers import context
from cellwork_hub.containers.engine import Engine
from cellwork_hub.containers.reasons import MAKE_ROOM

if TYPE_CHECKING:
    from docker.models.images import Image as EngineImage

INPUTS = "cellwork.inputs"
"""The label with the hash of what an image was made from."""
REPOSITORY = "cellwork"
BUILD_SECONDS, VERIFY_SECONDS = 3600, 300
Say = Callable[[str], None]


class BuildFailed(CellworkError):
    """A step of the Containerfile failed."""


class Image(Struct):
    """An image that is there. `digest` is what origins and runs carry."""

    name: str
    tag: str
    digest: str
    env: str
    """Content id of the installed set."""
    size_mb: int
    built: datetime
    inputs: str = ""
    packages: list[str] = []
    """``name==version``, sorted."""


def tag(name: str) -> str:
    """Return the full tag of our image `name`."""
    return f"{REPOSITORY}/{name}:{__version__}"


def build(
    engine: Engine, home: Home, name: str, *, base: str = "", secrets: Mapping[str, Path] | None = None, network: str = "", say: Say = lambda _: None
) -> Image:  # fmt: skip
    """Make the image `name`, its parents first, and return it; what is there with the same content is left alone.

    Parameters
    ----------
    base : the image that `base` and `serve` start from; empty takes the Containerfile's.
    secrets : id -> file, mounted under /run/secrets while packages are installed: ``cacert``, ``pipconf``.
    network : of the build, e.g. ``host``; empty is the engine's own.

    Raises
    ------
    BuildFailed
        A step failed; with its last lines.
    Unavailable
        No program can build, or the base image can't be had.
    """
    build_of = Build(engine, base, dict(secrets or {}), network)
    with tempfile.TemporaryDirectory(prefix="cellwork-image-") as temporary:
        written = context.write(context.folder(name), Path(temporary))
        made_from = ids.of_content("env", written, *_chain(name), base)
        there = look(engine, home, name)
        if there and there.inputs == made_from:
            return there
        say(f"{name}: building")
        build_of.run(Path(temporary), name, build_of.packages_above(name, say), label=made_from)
    made = look(engine, home, name)
    if made is None:
        raise Unavailable("image", name, "was built and is not there", "look at the engine's disk: docker system df")
    say(f"{name}: {made.digest[:19]}, {made.size_mb} MB, {len(made.packages)} packages")
    return made


def _chain(name: str) -> list[str]:
    """Return the Containerfiles that `name` is made on, nearest first; what they install stands in every context."""
    above = parent(context.folder(name))
    return [(context.folder(above) / "Containerfile").read_text(), *_chain(above)] if above else []


@dataclass(frozen=True)
class Build:
    """How images are built here."""

    engine: Engine
    base: str
    secrets: dict[str, Path]
    network: str

    def packages_above(self, name: str, say: Say) -> str:
        """Make what `name` is made on, its packages without the library; return its tag, or "" if that is another's image.

        The library comes last in every image, so that a change in it installs nothing else anew.
        """
        above = parent(context.folder(name))
        if not above:
            return ""
        with tempfile.TemporaryDirectory(prefix="cellwork-image-") as temporary:
            context.write(context.folder(above), Path(temporary), library=False)
            higher = self.packages_above(above, say)
            say(f"{above}: its packages")
            self.run(Path(temporary), above, higher, target="packages")
        return f"{tag(above)}-packages"

    def run(self, folder: Path, name: str, above: str, *, target: str = "", label: str = "") -> None:
        """Build the Containerfile of `folder`, or its stage `target`, on the image `above`."""
        arguments = {"PARENT": above} if above else {"BASE_IMAGE": self.base} if self.base else {}
        full = tag(name) + (f"-{target}" if target else "")
        words = [*builder(), "--tag", full, "--file", str(folder / "Containerfile")]
        words += ["--target", target] if target else ["--label", f"{INPUTS}={label}"]
        words += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        words += [word for key, path in self.secrets.items() for word in ("--secret", f"id={key},src={path}")]
        words += ["--network", self.network] if self.network else []
        environ = {
            **os.environ,
            "DOCKER_HOST": self.engine.address,
            "DOCKER_BUILDKIT": "1",
            "BUILDKIT_PROGRESS": "plain",
        }
        done = subprocess.run(
            [*words, str(folder)], env=environ, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
        if done.returncode:
            raise BuildFailed("image", full, _why(done.stderr), "mend that, then build it again")


def parent(folder: Path) -> str:
    """Return the image of ours that the Containerfile in `folder` starts from; empty if it starts from another's."""
    found = re.search(rf"^ARG PARENT={REPOSITORY}/(\w+)$", (folder / "Containerfile").read_text(), re.MULTILINE)
    return found[1] if found else ""


def _why(output: str) -> str:
    """Return what of a build's output says why it failed."""
    if "no space left on device" in output.lower():
        return f"there is no space left on the engine's disk (look: docker system df; make room: {MAKE_ROOM})"
    if "pull access denied" in output or "failed to do request" in output or "not found: manifest unknown" in output:
        return "its base image can't be had here; name one that is there: --base IMAGE"
    lines = [line for line in output.splitlines() if line.strip() and "sha256:" not in line]
    return "the build failed:\n" + "\n".join(lines[-12:])


def builder() -> list[str]:
    """Return the command that builds with secrets: a docker whose BuildKit is its own or a plugin.

    Raises
    ------
    Unavailable
        No docker on the PATH can.
    """
    seen = [str(Path(folder) / "docker") for folder in os.get_exec_path()]
    for path in (path for path in seen if shutil.which(path)):
        if _output(path, "buildx", "version"):
            return [path, "buildx", "build", "--load"]
        version = _output(path, "--version")
        if (found := re.search(r"version (\d+)", version)) and int(found[1]) < 23:
            return [path, "build"]
    raise Unavailable(
        "program", "docker", "is not here in a version that builds with secrets (BuildKit)",
        "install docker.io or docker-buildx from your system's packages",
    )  # fmt: skip


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def look(engine: Engine, home: Home, name: str) -> Image | None:
    """Return the image `name` (one of ours, any tag or a digest) if the engine has it."""
    import docker

    client = engine.client()
    try:
        found = client.images.get(tag(name) if name in context.names() else name)
        return _described(client, home, name, found)
    except docker.errors.ImageNotFound:
        return None
    finally:
        client.close()


def the(engine: Engine, home: Home, name: str) -> Image:
    """Return the image `name`; raises NotFound with the way to make it."""
    found = look(engine, home, name)
    if found is None:
        ours = name in context.names()
        raise NotFound(
            "image", name, "is not here", f"build it: cellwork image build {name}" if ours else f"pull it: docker pull {name}"
        )  # fmt: skip
    return found


def pull(engine: Engine, home: Home, name: str) -> Image:
    """Fetch an image that is another's, and return it; raises NotFound with the registry's answer."""
    import docker

    client = engine.client(timeout=BUILD_SECONDS)
    try:
        client.images.pull(name)
    except docker.errors.APIError as error:
        raise NotFound(
            "image", name, f"can't be pulled: {error.explanation}", "check its name in the profile"
        ) from None
    finally:
        client.close()
    return the(engine, home, name)


def everything(engine: Engine, home: Home) -> Iterator[Image]:
    """Yield those of our images that are there."""
    for name in context.names():
        if found := look(engine, home, name):
            yield found


def stale(image: Image) -> bool:
    """Whether the image's record tells another version of the library than is installed here."""
    return f"cellwork=={__version__}" not in image.packages


def _described(client: Any, home: Home, name: str, found: EngineImage) -> Image:
    """Return what is known of an image; what is installed in it is read once, then kept by digest."""
    path = home.image(str(found.id))
    if path.exists():
        return msgspec.structs.replace(msgspec.json.decode(path.read_bytes(), type=Image), name=name)
    packages = _installed(client, str(found.id))
    told = found.attrs
    built = datetime.fromisoformat(told["Created"][:19]).replace(tzinfo=UTC)
    image = Image(
        name=name, tag=(found.tags or [""])[0], digest=str(found.id), env=ids.of_content("env", *packages),
        size_mb=round(told["Size"] / 1e6), built=built, inputs=(told["Config"]["Labels"] or {}).get(INPUTS, ""), packages=packages,
    )  # fmt: skip
    files.write(path, msgspec.json.encode(image))
    return image


def _installed(client: Any, digest: str) -> list[str]:
    """Return the installed set that the image wrote down; of an image that is none of ours, nothing is known."""
    import docker

    container = client.containers.create(digest, ["true"], network_mode="none")
    try:
        chunks, _ = container.get_archive("/opt/cellwork/installed.txt")
        return _untarred(b"".join(chunks)).split()
    except docker.errors.NotFound:
        return []
    finally:
        container.remove(force=True)


def _untarred(data: bytes) -> str:
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile(archive.getmembers()[0])
        return member.read().decode() if member else ""


def verify(engine: Engine, home: Home, name: str) -> tuple[bool, str]:
    """Run the image's own checks without a network as its user; return whether they passed, and what they said.

    Raises
    ------
    NotFound
        The image is not here.
    Refused
        The image starts no container, or its checks do not end.
    """
    import docker

    image = the(engine, home, name)
    client = engine.client(timeout=VERIFY_SECONDS)
    gpus = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])] if name == "gpu" and engine.gpus else []
    container = client.containers.create(
        image.digest, [f"/opt/cellwork/verify/{name}"], network_mode="none", device_requests=gpus, init=True
    )
    try:
        container.start()
        code = container.wait(timeout=VERIFY_SECONDS)["StatusCode"]
        return code == 0, container.logs().decode(errors="replace")
    except docker.errors.APIError as error:
        raise Refused("image", name, f"starts no container: {error.explanation}", "build it again") from None
    except OSError:
        raise Refused("image", name, f"its checks did not end in {VERIFY_SECONDS} s", "look at its verify") from None
    finally:
        container.remove(force=True)
        client.close()
