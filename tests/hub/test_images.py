"""The images: made once, checked inside, nothing of a build's secrets in any layer, and plain words when one can't be made."""

from __future__ import annotations

import base64
import configparser
import json
import secrets
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import engine as engines
import pytest

from cellwork import ids
from cellwork.errors import NotFound
from cellwork.home import Home
from cellwork_hub.containers import context, images
from cellwork_hub.containers.engine import Engine, connect

pytestmark = pytest.mark.timeout(3600)  # the first build on a machine installs everything


@pytest.fixture(scope="module")
def using(engine: engines.Engine) -> Engine:
    return connect(engine.address)


def test_an_image_passes_its_own_checks(using: Engine, cpu_image: images.Image, tmp_path: Path) -> None:
    passed, said = images.verify(using, Home(tmp_path), "cpu")
    assert passed, said
    assert "ok     training" in said


@pytest.mark.soak
@pytest.mark.parametrize("name", ["jobs", "serve"])
def test_the_images_of_runs_and_of_serving_are_made_and_pass_their_own_checks(
    engine: engines.Engine, using: Engine, cpu_image: images.Image, tmp_path: Path, name: str
) -> None:
    images.build(using, Home(tmp_path), name, base=engine.base(), secrets=engine.secrets(), network="host")
    passed, said = images.verify(using, Home(tmp_path), name)
    assert passed, said
    assert engine.client.images.get(images.tag(name)).attrs["Config"]["User"] == "jovyan"


def test_what_is_installed_is_known_by_digest_after_the_image_is_gone(
    cpu_image: images.Image, using: Engine, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    found = images.the(using, home, "cpu")
    assert found == cpu_image
    assert "cellwork==0.1.0" in found.packages
    assert found.env == ids.of_content("env", *found.packages)
    assert home.image(found.digest).is_file()


def test_the_cpu_image_is_at_most_1600_mb(cpu_image: images.Image) -> None:
    assert cpu_image.size_mb <= 1600


def test_a_second_build_of_the_same_content_does_nothing(
    engine: engines.Engine, using: Engine, cpu_image: images.Image, tmp_path: Path
) -> None:
    said: list[str] = []
    again = images.build(
        using, Home(tmp_path), "cpu", base=engine.base(), secrets=engine.secrets(), network="host", say=said.append
    )
    assert (again.digest, said) == (cpu_image.digest, [])


def test_no_layer_holds_a_secret_of_the_build(engine: engines.Engine, cpu_image: images.Image) -> None:
    """The whole image as the engine hands it out: every layer, every file's bytes, and how each layer was made."""
    mark, tail, size = engines.SECRET_MARK.encode(), b"", 0
    for chunk in engine.client.images.get(cpu_image.tag).save(chunk_size=2**23):
        assert mark not in tail + chunk
        tail, size = chunk[-len(mark) :], size + len(chunk)
    assert size > 5e8, "and it was the whole image"


def test_the_search_would_find_a_secret(engine: engines.Engine) -> None:
    """A build that copies its secret away is found out by the same search."""
    secret = engine.secrets()["pipconf"]
    container = engine.client.containers.create(engine.base(), ["true"], network_mode="none")
    try:
        container.put_archive("/opt", _tar(secret))
        leaky = container.commit("cellwork-test/leaky")
        assert engines.SECRET_MARK.encode() in b"".join(leaky.save(chunk_size=2**23))
    finally:
        container.remove(force=True)
        engine.client.images.remove("cellwork-test/leaky", force=True)


@dataclass(frozen=True)
class Index:
    """A package index that lets in who knows the password, with one package."""

    url: str
    password: str
    package: str


@pytest.fixture
def private_index(tmp_path: Path) -> Iterator[Index]:
    password, package = secrets.token_hex(16), f"of-the-house-{secrets.token_hex(4)}"
    name = package.replace("-", "_")
    file = f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / file, "w") as wheel:
        wheel.writestr(f"{name}.py", "answer = 42\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    data, asked = (tmp_path / file).read_bytes(), "Basic " + base64.b64encode(f"ada:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            """Send the headers; return what follows them."""
            if self.headers["authorization"] != asked:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
                return b""
            there = {f"/simple/{package}/": f'<a href="/{file}">{file}</a>'.encode(), f"/{file}": data}
            content = there.get(self.path, b"")
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Index(f"http://ada:{password}@127.0.0.1:{server.server_port}/simple", password, package)
        server.shutdown()


INDEXES = "extra-index-url"
OWN = """FROM {parent}
USER root
RUN --mount=type=secret,id=cacert --mount=type=secret,id=pipconf --mount=type=cache,target=/var/cache/pip cellwork-install {package}
USER jovyan
"""


def test_a_package_of_a_private_index_is_installed_and_its_password_is_in_no_layer(
    engine: engines.Engine, using: Engine, cpu_image: images.Image, private_index: Index, tmp_path: Path
) -> None:
    """An image of one's own on ours; the index and its password come from pip's configuration, a secret of the build."""
    folder, conf, name = tmp_path / "own", tmp_path / "pip.conf", private_index.package
    tag = images.tag(name)
    folder.mkdir()
    (folder / "Containerfile").write_text(OWN.format(parent=cpu_image.tag, package=name))
    plain = engine.secrets()["pipconf"].read_text()
    settings = configparser.RawConfigParser()
    settings.read_string(plain)
    if not settings.has_section("global"):
        settings.add_section("global")
    indexes = [settings.get("global", INDEXES, fallback=""), private_index.url]
    settings.set("global", INDEXES, "\n".join(filter(None, indexes)))
    with conf.open("w") as file:
        settings.write(file)
    build = images.Build(using, "", {**engine.secrets(), "pipconf": conf}, "host")
    without = images.Build(using, "", engine.secrets(), "host")
    with pytest.raises(images.BuildFailed, match=name):
        without.run(folder, name, "")
    build.run(folder, name, "")
    try:
        made = engine.client.images.get(tag)
        code = f"import {name.replace('-', '_')} as package; print(package.answer)"
        told = engine.client.containers.run(tag, ["python", "-c", code], network_mode="none", remove=True)
        assert told.strip() == b"42"
        found = images.look(using, Home(tmp_path), tag)
        assert found
        assert f"{name}==1.0" in found.packages
        assert private_index.password not in json.dumps([made.attrs, made.history()], default=str)
        own = _own_layers(made, engine.client.images.get(cpu_image.tag))
        assert any(path.name == f"{name.replace('-', '_')}.py" for path in own), "they were searched"
        assert [path for path in own if private_index.password.encode() in path.read_bytes()] == []
    finally:
        engine.client.images.remove(tag, force=True)


def _own_layers(image: Any, parent: Any) -> list[Path]:
    """Return the files of those layers of `image` that `parent` lacks, where the engine of the tests keeps them."""
    ours, theirs = (found.attrs["GraphDriver"] for found in (image, parent))
    assert ours["Name"] == "overlay2", ours
    known = {*theirs["Data"]["LowerDir"].split(":"), theirs["Data"]["UpperDir"]}
    layers = [ours["Data"]["UpperDir"], *ours["Data"]["LowerDir"].split(":")]
    assert known <= set(layers)
    return [
        path
        for layer in set(layers) - known
        for path in Path(layer).rglob("*")
        if path.is_file() and not path.is_symlink()
    ]


def _tar(path: Path) -> bytes:
    import io
    import tarfile

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.add(path, path.name)
    return data.getvalue()


def test_a_base_that_is_not_here_is_named_with_the_way_out(using: Engine, tmp_path: Path) -> None:
    with pytest.raises(images.BuildFailed, match="--base"):
        images.build(using, Home(tmp_path), "base", base="registry.invalid/none:1", network="none")


def test_an_image_that_is_not_built_and_one_that_is_none_of_ours(using: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cellwork image build gpu"):
        images.verify(using, Home(tmp_path), "gpu")
    with pytest.raises(NotFound, match="there are: base, cpu, gpu, jobs, serve"):
        context.folder("cuda")


def test_the_same_content_gives_the_same_context_and_another_another(tmp_path: Path) -> None:
    first, second = (context.write(context.folder("base"), tmp_path / name, library=False) for name in ("a", "b"))
    assert first == second
    (tmp_path / "a" / "cellwork-server").write_text("#!/bin/sh\n")
    assert context.content(tmp_path / "a") != first


def test_a_requirement_of_an_extra_is_listed_without_its_condition() -> None:
    found = context.requirements(("lab",))
    assert any(line.startswith("jupyterlab") for line in found)
    assert all("extra" not in line for line in context.requirements(("", "jupyter", "boost", "serve")))


@pytest.mark.parametrize("with_uv", [True, False])
def test_the_wheel_of_a_checkout_is_built_with_uv_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_uv: bool
) -> None:
    if not with_uv:
        monkeypatch.setattr(context, "UV", tmp_path / "uv")
    assert context.UV.is_file() == with_uv
    with zipfile.ZipFile(context.wheel(tmp_path)) as wheel:
        assert {"cellwork/__init__.py", "cellwork_hub/__init__.py"} <= set(wheel.namelist())
