"""The container runner: the process runner, with each run's kernel in a container of the image it was scheduled from.

What speaks with the service stays outside, with the runner's token; inside is the kernel alone, with the run's own token. A
kernel is warmed in the default image; a run of another one gets a fresh kernel in that. As long as there is none, runs wait. What a run prints passes through
here, what it writes stays in its container and its working folder. A checkpoint is written by the kernel, beside its sockets,
and carried from there as bytes: outside of a kernel nothing of it is unpickled, and no link in it is followed (`runs.taken`).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cellwork.errors import CellworkError, Unavailable
from cellwork.home import Home
from cellwork.wire import PREFIX
from cellwork_hub import profiles
from cellwork_hub.containers import engine, images, way
from cellwork_hub.context import Context
from cellwork_hub.jobs.runners import attached
from cellwork_hub.jobs.runners.attached import Options
from cellwork_hub.jobs.runners.process import Runner, prepare
from cellwork_hub.jobs.runners.slot import Platform

log = logging.getLogger("cellwork.runner")

KERNEL = "cellwork.kernel"
"""The label of a kernel's container. It is removed by the process that stands for the kernel here; if that is killed, by the next one."""
ENDED_SECONDS = 10.0
LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Containers:
    """Where and how the kernels of runs live."""

    way: way.Way
    home: Home
    image: images.Image
    profile: profiles.Profile
    url: str

    def command(self, digest: str, work: Path) -> list[str]:
        """Return the command of a kernel in the image `digest` (empty: the default one) that works in `work`.

        Raises
        ------
        NotFound
            The image is not on this machine any more.
        """
        using, ours = engine.Engine(self.way.engine, "", 0, 0, False), way.label(self.home)
        engine.remove_ended(using, f"{KERNEL}={ours}", ENDED_SECONDS)
        image = images.the(using, self.home, digest) if digest and digest != self.image.digest else self.image
        environment = {
            "CELLWORK_URL": self.url, "MLFLOW_TRACKING_URI": self.url + PREFIX["mlflow"], "CELLWORK_IMAGE_DIGEST": image.digest,
            "CELLWORK_ENV": image.env, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
        }  # fmt: skip
        options = Options(
            engine=self.way.engine, network=self.way.network, image=image.digest, memory=self.profile.memory_bytes,
            cores=min(self.profile.cores, self.way.cores), labels={engine.OWNER: ours, KERNEL: ours},
            environment=environment, work=str(work),
        )  # fmt: skip
        return [sys.executable, "-m", "cellwork_hub.jobs.runners.attached", msgspec.json.encode(options).decode()]

    def give(self, folder: Path) -> None:
        """Hand what is below `folder` to the user of the containers, before any program of theirs can change it."""
        attached.give(folder)


def find(context: Context) -> Containers:
    """Return how runs of this platform execute in containers; raises Unavailable if no image for them is there."""
    chosen, home = way.known(context.home), context.home
    using = engine.connect(chosen.engine)
    image = way.image_of_runs(using, home)
    if image is None:
        raise Unavailable("image", "jobs", "is not built on this machine", "build it: cellwork image build jobs")
    menu = [profile for profile in profiles.load(home.profiles()) if not profile.gpus]
    largest = max(menu, key=lambda profile: profile.memory_bytes, default=profiles.BUILT_IN[1])
    return Containers(chosen, home, image, largest, f"http://{chosen.door}:{context.ports['public']}")


def awaited(context: Context) -> Containers:
    """Return how runs execute, as soon as there is an image for them; what it waits for is told once."""
    import docker

    told = ""
    while True:
        try:
            return find(context)
        except (CellworkError, docker.errors.DockerException, OSError) as error:
            if str(error) != told:
                told = str(error)
                log.error("no runs in containers yet: %s", told)
        time.sleep(LOOK_SECONDS)


def main() -> None:
    """Run slots until SIGTERM or SIGINT."""
    prepare()
    context = Context.load()
    containers = awaited(context)
    log.info("runs execute in containers of %s", containers.image.tag)
    name = f"{socket.gethostname()}-{os.getpid()}"
    platform = Platform(context.public_url, context.token("runner"), name, containers)
    Runner(platform, context.settings.runners).run()


if __name__ == "__main__":
    main()
