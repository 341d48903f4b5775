"""A kernel in a container, as a process of this machine: `python -m cellwork_hub.jobs.runners.attached OPTIONS -f FILE`.

It starts the container, hands an interrupt on, and ends when the container does; whoever looks at this process looks at the
kernel. The container lives as long as this process holds its standard input: however this process ends, the kernel ends too.

The container sees the folder of its sockets and the folder the run works in, and the platform's door; no credential comes
with it, the run's own token is handed over by its runner when there is a run.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from cellwork.wire import Struct
from cellwork_hub.containers.engine import HARDENED

UID = 1000
KERNEL = ("python", "-m", "cellwork_jupyter.kernel.contained")


class Options(Struct):
    """What a container for a kernel is made with; `image` is a digest."""

    engine: str
    network: str
    image: str
    memory: int
    cores: float
    labels: dict[str, str]
    environment: dict[str, str]
    work: str = ""


def main(words: list[str]) -> int:
    options = msgspec.json.decode(words[0], type=Options)
    sockets, work = Path(words[words.index("-f") + 1]).parent, Path(options.work)
    user = _give(sockets, work)
    import docker

    client = docker.APIClient(base_url=options.engine, timeout=60)
    made = client.create_container(
        options.image, [*KERNEL, *words[1:]], user=user, stdin_open=True, working_dir=str(work), environment=options.environment,
        labels=options.labels, host_config=_host(client, options, [sockets, work]),
    )  # fmt: skip
    signal.signal(signal.SIGINT, lambda _, __: client.kill(made["Id"], signal.SIGINT))
    signal.signal(signal.SIGTERM, _leave)
    held = client.attach_socket(made["Id"], params={"stdin": 1, "stream": 1})
    client.start(made["Id"])
    code = _wait(options.engine, made["Id"])
    held.close()
    return code


def _leave(_: int, __: FrameType | None) -> None:
    sys.exit(0)


def _give(sockets: Path, work: Path) -> str:
    """Hand both folders to the user in the container; return who that is."""
    work.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        return f"{os.geteuid()}:{os.getegid()}"
    for path in (work, sockets, *sockets.iterdir()):
        os.chown(path, UID, UID, follow_symlinks=False)
    return f"{UID}:{UID}"


def give(folder: Path) -> None:
    """Hand `folder` and what is below it to the user in containers; it is theirs already where this account is that user."""
    if os.geteuid() != 0:
        return
    os.chown(folder, UID, UID, follow_symlinks=False)
    for _, folders, files, opened in os.fwalk(folder):
        for name in (*folders, *files):
            os.chown(name, UID, UID, dir_fd=opened, follow_symlinks=False)


def _host(client: Any, options: Options, folders: list[Path]) -> Any:
    return client.create_host_config(
        binds={str(folder): {"bind": str(folder), "mode": "rw"} for folder in folders}, network_mode=options.network,
        mem_limit=options.memory, memswap_limit=options.memory, cpu_period=100_000, cpu_quota=int(options.cores * 100_000), **HARDENED,
    )  # fmt: skip


def _wait(engine: str, container: str) -> int:
    """Wait for the container's end, remove it, and end as it did: out of memory is a kill."""
    import docker

    client = docker.APIClient(base_url=engine, timeout=None)
    code = int(client.wait(container)["StatusCode"])
    over = bool(client.inspect_container(container)["State"]["OOMKilled"])
    client.remove_container(container, force=True)
    if over or code == 128 + signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
