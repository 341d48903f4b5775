"""The images: made once, checked inside, nothing of a build's secrets in any layer, and plain words when one can't be made."""

from __future__ import annotations

from pathlib import Path

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
