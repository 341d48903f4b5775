"""`cellwork image build|list|verify`, `cellwork profile list` and `cellwork kubernetes values`: shells of their modules."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cellwork import settings
from cellwork.cli import show
from cellwork.errors import BadInput, Unavailable
from cellwork.home import Home
from cellwork_hub import profiles
from cellwork_hub.containers import context, engine, images


def _engine() -> tuple[engine.Engine, Home]:
    chosen = settings.load()[0]
    found, why = engine.find(chosen.container_engine)
    if found is None:
        raise Unavailable("container engine", "", why, "start one, then try again")
    return found, chosen.folder.ensure()


@click.group()
def image() -> None:
    """Container images: build, list, verify.

    Example: cellwork image build cpu
    """


@image.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--base", default="", help="The image that base and serve start from (Python 3.11 or newer).")
@click.option("--secret", "secrets", multiple=True, metavar="ID=FILE", help="cacert or pipconf; ends up in no layer.")
@click.option("--network", default="", help="The network of the build, e.g. host.")
@show.as_json
def build(names: tuple[str, ...], base: str, secrets: tuple[str, ...], network: str, json: bool) -> None:
    """Make images, their parents first; what is there with the same content is left alone.

    Example: cellwork image build cpu jobs
    """
    for name in names:
        context.folder(name)
    using, home = _engine()
    mounted = dict(_secret(text) for text in secrets)
    made = [
        images.build(
            using, home, name, base=base, secrets=mounted, network=network, say=lambda line: click.echo(line, err=json)
        )
        for name in names or ("cpu",)
    ]
    if json:
        show.document(made)
    else:
        _table(made)


def _secret(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path or not Path(path).is_file():
        raise BadInput(
            "build secret", text, "is not ID=FILE with a file that is there", "e.g. --secret pipconf=/etc/pip.conf"
        )
    return name, Path(path).absolute()


@image.command(name="list")
@show.as_json
def list_(json: bool) -> None:
    """The images that are there, with digest and size.

    Example: cellwork image list --json
    """
    found = list(images.everything(*_engine()))
    if json:
        show.document(found)
    else:
        _table(found)


def _table(found: list[images.Image]) -> None:
    rows = [(i.name, i.digest[:19], i.env, i.size_mb, len(i.packages), i.built, "other version" if images.stale(i) else "") for i in found]  # fmt: skip
    show.table(
        rows,
        ("image", "digest", "environment", "MB", "packages", "built", ""),
        empty="none; make one: cellwork image build",
    )


@image.command()
@click.argument("name")
@show.as_json
def verify(name: str, json: bool) -> None:
    """Run the image's own checks inside it; exit code 3 if one fails.

    Example: cellwork image verify cpu
    """
    using, home = _engine()
    passed, said = images.verify(using, home, name)
    if json:
        show.document({"image": name, "passed": passed, "output": said})
    else:
        click.echo(said.rstrip())
    if not passed:
        sys.exit(3)


@click.group()
def profile() -> None:
    """What a user's server may take, and who may have it.

    Example: cellwork profile list
    """


@profile.command(name="list")
@click.option("--toml", is_flag=True, help="Print the file that would define this menu.")
@show.as_json
def list_profiles(toml: bool, json: bool) -> None:
    """The menu of user servers; a menu of your own is CELLWORK_HOME/profiles.toml.

    Example: cellwork profile list --toml >~/.local/share/cellwork/profiles.toml
    """
    menu = profiles.load(settings.load()[0].folder.profiles())
    if json:
        show.document(menu)
    elif toml:
        click.echo(profiles.as_toml(menu), nl=False)
    else:
        rows = [(p.name, p.memory, p.cores, p.gpus, p.full_image, ", ".join(p.groups) or "everybody") for p in menu]
        show.table(rows, ("profile", "memory", "cores", "GPUs", "image", "for"))


@click.group()
def kubernetes() -> None:
    """User servers on a cluster, from the same profiles.

    Example: cellwork kubernetes values --url http://cellwork.lab --registry registry.lab/cellwork
    """


@kubernetes.command()
@click.option("--url", required=True, help="Where the platform's services answer, as seen from a pod.")
@click.option("--registry", default="", help="Where the images of `cellwork image build` were pushed to.")
@click.option("--storage", default="10Gi", show_default=True, help="The size of a user's volume.")
@show.as_json
def values(url: str, registry: str, storage: str, json: bool) -> None:
    """Print the values for the Zero-to-JupyterHub chart, as YAML.

    Example: cellwork kubernetes values --url http://cellwork.lab --registry registry.lab >values.yaml
    """
    from cellwork_hub import kubernetes as cluster

    chosen = settings.load()[0]
    made = cluster.values(
        profiles.load(chosen.folder.profiles()), url=url, registry=registry, storage=storage, idle_seconds=chosen.culling_idle_seconds
    )  # fmt: skip
    if json:
        show.document(made)
        return
    import yaml

    click.echo(yaml.safe_dump(made, sort_keys=False, allow_unicode=True), nl=False)
