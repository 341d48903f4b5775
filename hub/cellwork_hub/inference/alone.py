"""`cellwork serve`: the inference service without hub and platform, see `folders`; this process only keeps its workers.

At SIGTERM the service drains (`cellwork_hub.drain`); SIGHUP starts new workers beside the old ones and then lets those drain, so that a
changed folder, setting or version of Cellwork comes to callers without a failed request.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import click

from cellwork import ids, settings
from cellwork.errors import BadInput, Conflict
from cellwork.models import package
from cellwork_hub import edge
from cellwork_hub.context import Context
from cellwork_hub.inference import workers


@click.command()
@click.argument("models", nargs=-1, metavar="[PROJECT/NAME=FOLDER]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Open Inference over gRPC; 0 is none. [default: 0, or the setting]",
)
@click.option(
    "--workers", "wanted", type=click.IntRange(0, 256), help="Processes; 0 is one a core. [default: 1, or the setting]"
)
@click.option("--new-key", default="", metavar="NAME", help="Make a key of this name for each project and print it.")
def serve(
    models: tuple[str, ...], host: str, port: int, grpc_port: int | None, wanted: int | None, new_key: str
) -> None:
    """Serve endpoints without hub and platform: those of this home, and model folders; callers need an API key.

    SIGTERM ends it when what has begun is answered; SIGHUP renews its processes without a failed request.

    Example: cellwork serve shop/churn=./model --port 8080 --new-key web
    """
    folders = dict(map(_named, models))
    chosen = settings.load()[0]
    chosen.folder.ensure()
    for token in _new_keys(chosen, folders, new_key) if new_key else ():
        click.echo(token)
    _refuse_if_taken(host, port)
    first = edge.listen(host, port)
    taken = first.getsockname()[1]
    sockets = [first]

    def listen() -> socket.socket:
        return sockets.pop() if sockets else edge.listen(host, taken)

    click.echo(f"serves on http://{host}:{taken}", err=True)
    os.environ["CELLWORK_HOST"] = host
    if grpc_port is not None:
        os.environ["CELLWORK_GRPC_PORT"] = str(grpc_port)
    command = [*workers.python(__name__), *(f"{name}={folder}" for name, folder in folders.items())]
    count = workers.count(chosen.inference_workers if wanted is None else wanted)
    workers.run(count, command, listen, drain_seconds=chosen.drain_seconds)


def _refuse_if_taken(host: str, port: int) -> None:
    """Raise Conflict if somebody listens there already: our own sockets share a port, with anybody of this account."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                "address", f"{host}:{port}", f"can't be taken: {error.strerror}", "choose another --port"
            ) from None


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise BadInput("model", text, "names no folder", "write project/name=folder")
    package.read(Path(folder))
    return "/".join(ids.split_name(name)), Path(folder).absolute()


def _new_keys(chosen: settings.Settings, folders: dict[str, Path], name: str) -> list[str]:
    from cellwork import db
    from cellwork_hub.inference.app import MIGRATIONS
    from cellwork_hub.inference.folders import make_keys

    engine = db.open_database(_context(chosen, 0).database_url("inference"), MIGRATIONS)
    tokens = make_keys(engine, {name.partition("/")[0] for name in folders}, name)
    engine.dispose()
    return tokens


def _context(chosen: settings.Settings, port: int) -> Context:
    return Context(chosen, {"public": port, "hub": 0, "inference": port})


def work(words: list[str]) -> None:
    """Be one worker, as `workers.Seat` started it."""
    from cellwork_hub.inference.folders import service

    workers.end_with_parent()
    end = words.index("--worker")
    place, chosen = workers.Place.of(words[end + 1 :]), settings.load()[0]
    context = _context(chosen, place.listening.getsockname()[1])
    app = service(context, dict(map(_named, words[:end])), worker=place.number)
    drain = chosen.drain_seconds
    edge.serve(app, "", 0, listening=place.listening, drain_seconds=drain, proxied=False, started=place.say)


if __name__ == "__main__":
    work(sys.argv[1:])
