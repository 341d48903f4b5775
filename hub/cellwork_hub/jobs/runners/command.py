"""`cellwork runner`: runners on further hosts and beside the workers of a Dask cluster. The platform's own starts with it.

A runner needs the platform's address and the runner's token, no more; the token may claim every run, so it belongs in a file that
only the runner's account reads.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import click

from cellwork import files
from cellwork.errors import BadInput

URL = click.option("--url", envvar="CELLWORK_URL", default="", help="The platform's address; default: the one here.")
TOKEN = click.option("--token-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Holds the runner's token; default: CELLWORK_RUNNER_TOKEN, or the platform's here.")  # fmt: skip
SLOTS = click.option("--slots", type=click.IntRange(1, 64), default=2, show_default=True, help="Runs at once, on each host or worker.")  # fmt: skip
WARM = click.option("--warm", default="", metavar="MODULES", help="Imported once, before kernels are forked; separated by commas.")  # fmt: skip


@click.group()
def runner() -> None:
    """Runners on further hosts and on Dask clusters.

    Example: cellwork runner start --url https://platform.example.org --token-file runner-token
    """


@runner.command()
@URL
@TOKEN
@SLOTS
@WARM
def start(url: str, token_file: Path | None, slots: int, warm: str) -> None:
    """Execute the platform's runs on this host until it is stopped; runs under way are handed back then.

    Example: cellwork runner start --url https://platform.example.org --token-file runner-token --slots 4
    """
    url, token = _platform(url, token_file)
    environment = {
        **os.environ, "CELLWORK_URL": url, "CELLWORK_RUNNER_TOKEN": token, "CELLWORK_RUNNERS": str(slots), "CELLWORK_WARM_IMPORTS": warm,
    }  # fmt: skip
    os.execve(sys.executable, [sys.executable, "-m", "cellwork_hub.jobs.runners.process"], environment)


@runner.command()
@click.argument("address")
@URL
@TOKEN
@SLOTS
@WARM
def dask(address: str, url: str, token_file: Path | None, slots: int, warm: str) -> None:
    """Execute the platform's runs beside each worker of the Dask cluster at ADDRESS until it is stopped.

    \b
    Workers that join later have a runner too; a worker that leaves hands its runs back. Their environment needs cellwork[all], and
    the platform's address must be reachable from them.

    Example: cellwork runner dask tcp://scheduler:8786 --url https://platform.example.org --token-file runner-token
    """
    signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT}
    )  # before any thread: `serve` waits for them
    from cellwork_hub.jobs.runners import dask as cluster

    url, token = _platform(url, token_file)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cluster.serve(address, cluster.Beside(url, token, slots, warm))


def _platform(url: str, token_file: Path | None) -> tuple[str, str]:
    """Return address and token: as given, else of the platform that runs from here."""
    token = files.read_secret(token_file) if token_file else os.environ.get("CELLWORK_RUNNER_TOKEN", "")
    if url and token:
        return url.rstrip("/"), token
    if url or token:
        missing = "--token-file" if url else "--url"
        raise BadInput("option", missing, "is missing", "a runner of another host needs both --url and --token-file")
    from cellwork_hub.context import Context

    context = Context.load()
    return context.public_url, context.token("runner")
