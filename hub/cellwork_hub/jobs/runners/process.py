"""The process runner: imports papermill once and forks a slot for each run it may execute at once.

It needs CELLWORK_URL and CELLWORK_RUNNER_TOKEN, and then reads nothing of CELLWORK_HOME, so that it can run under an account
of its own; on the platform's account it finds both there. It stays single-threaded and opens no connection: what is forked
must inherit neither. When it ends, or a slot dies, the slot's kernel and what that started is ended too. A slot that keeps
the kernel of a failed run is replaced by a further one. With ``--attended`` it also leaves when its standard input ends: whoever
started it is gone then.

A slot warms its kernel, says READY and waits; it may claim a run when fewer runs than the runner's number are under way. So
where kernels are cheap (forked from a zygote) as many again stand ready, and a run that ends is followed by the next at once:

    warming --READY--> ready --may claim--> at work --OVER--> ending its kernel
                                               |--KEEPING--> keeping a failed run's kernel
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from cellwork.runs.kernel import allowed
from cellwork.runs.zygote import Zygote
from cellwork_hub.context import Context
from cellwork_hub.jobs.runners.slot import KEEPING, OVER, PASSED_ON, READY, Platform, serve_one

log = logging.getLogger("cellwork.runner")

SET_PARENT_DEATH_SIGNAL, SET_DUMPABLE = 1, 4  # linux/prctl.h
GRACE_SECONDS = 10.0
PRELOADED = (
    "httpx",
    "httpcore",
    "papermill",
    "jupyter_client.manager",
    "jupyter_client.asynchronous.client",
    "cellwork.runs.plugin",
)
FORK = multiprocessing.get_context("fork")


def main() -> None:
    """Run slots until SIGTERM or SIGINT."""
    arguments = argparse.ArgumentParser(description="Execute runs of the platform at CELLWORK_URL.")
    arguments.add_argument("--attended", action="store_true", help="leave when standard input ends")
    arguments.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}", help="what attempts call it")
    asked = arguments.parse_args()
    platform, slots, modules = _platform(asked.name)
    with _zygote(modules) as zygote:
        prepare()
        Runner(replace(platform, zygote=zygote), slots, attended=asked.attended).run()


def prepare() -> None:
    """Do what comes before the first slot: logging, and the imports that every run needs."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "papermill", "traitlets"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    _preload()


@contextlib.contextmanager
def _zygote(modules: str) -> Iterator[Zygote | None]:
    """Start what kernels are forked from, if there is something to import; it gets none of the runner's variables but the harmless."""
    named = [name.strip() for name in modules.split(",") if name.strip()]
    with tempfile.TemporaryDirectory(prefix="cw-") as folder:
        environment = {**allowed(os.environ), **{key: os.environ[key] for key in PASSED_ON if key in os.environ}}
        zygote = Zygote.start(Path(folder), named, environment) if named else None
        if named and zygote is None:
            log.warning("kernels are started fresh: a fork with %s can't compute here", modules)
        try:
            yield zygote
        finally:
            if zygote:
                zygote.stop()


def _platform(name: str) -> tuple[Platform, int, str]:
    """Return where the platform is, how many runs to execute at once, and what their kernels are forked with."""
    token = os.environ.pop("CELLWORK_RUNNER_TOKEN", "")
    if token:
        _prctl(SET_DUMPABLE, 0)  # a notebook of the same account can't read the token from /proc
        slots, modules = int(os.environ.get("CELLWORK_RUNNERS", "2")), os.environ.get("CELLWORK_WARM_IMPORTS", "")
        return Platform(os.environ["CELLWORK_URL"].rstrip("/"), token, name), slots, modules
    context = Context.load()
    chosen = context.settings
    return Platform(context.public_url, context.token("runner"), name), chosen.runners, chosen.warm_imports


def _preload() -> None:
    """Import what every run needs, without the threads of a BLAS pool, which a fork would not inherit."""
    os.environ["OPENBLAS_NUM_THREADS"], before = "1", os.environ.get("OPENBLAS_NUM_THREADS")
    for module in PRELOADED:
        importlib.import_module(module)
    del os.environ["OPENBLAS_NUM_THREADS"]
    if before:
        os.environ["OPENBLAS_NUM_THREADS"] = before
    _preform()
    gc.collect()
    gc.freeze()  # what every slot shares with this process, no slot's collector touches


def _preform() -> None:
    """Make what nbformat and jupyter_client make at their first use and keep: every slot would make it again."""
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from jupyter_client.provisioning import KernelProvisionerFactory

    for minor in range(6):
        nbformat.validate(
            {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": []}, version=4, version_minor=minor
        )
    KernelProvisionerFactory.instance()
    with contextlib.suppress(NoSuchKernel):
        KernelSpecManager().get_kernel_spec("python3")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


@dataclass
class Slot:
    process: BaseProcess
    told: Connection
    started: float = field(default_factory=time.monotonic)
    kernels: list[int] = field(default_factory=list)
    words: set[str] = field(default_factory=set)
    sent: bool = False

    @property
    def past(self) -> bool:
        """Whether its run is over for the others: ended, or failed with its kernel kept."""
        return bool(self.words & {OVER, KEEPING})

    @property
    def at_work(self) -> bool:
        return self.sent and not self.past

    def listen(self) -> None:
        """Take what the slot has told: its kernels, and how far it is."""
        with contextlib.suppress(EOFError, OSError):
            while self.told.poll():
                word = self.told.recv()
                if isinstance(word, str):
                    self.words.add(word)
                else:
                    self.kernels.append(word)

    def may_claim(self) -> None:
        self.sent = True
        with contextlib.suppress(OSError):
            self.told.send(True)

    def end_kernels(self) -> None:
        """End the kernels that the slot told of; the slot itself is dead, and has ended them unless it was killed."""
        self.listen()
        for kernel in self.kernels:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel, signal.SIGKILL)


class Runner:
    def __init__(self, platform: Platform, slots: int, *, attended: bool = False) -> None:
        self.platform, self.count = platform, slots
        self.starter = [sys.stdin.fileno()] if attended else []
        self.ahead = slots if platform.zygote else 0
        self.slots: list[Slot] = []
        self.stopping = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self.stopping:
            while sum(not slot.past for slot in self.slots) < self.count + self.ahead:
                self.slots.append(self._fork())
            for slot in [s for s in self.slots if READY in s.words and not s.sent][: self.count - self._at_work()]:
                slot.may_claim()
            told = [waited for slot in self.slots for waited in (slot.process.sentinel, slot.told)]
            heard = wait([*told, *self.starter], timeout=1)
            self.stopping |= any(fd in heard for fd in self.starter)
            self._reap()
        self._end()

    def _at_work(self) -> int:
        return sum(slot.at_work for slot in self.slots)

    def _stop(self, _: int, __: FrameType | None) -> None:
        self.stopping = True

    def _fork(self) -> Slot:
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_slot, args=(self.platform, theirs, os.getpid()))
        process.start()
        theirs.close()
        return Slot(process, ours)

    def _reap(self) -> None:
        for slot in self.slots:
            slot.listen()
        ended = [slot for slot in self.slots if not slot.process.is_alive()]
        for slot in ended:
            slot.process.join()
            slot.end_kernels()
            self.slots.remove(slot)
            if slot.process.exitcode:
                log.warning("a slot ended with %s", slot.process.exitcode)
                time.sleep(max(0.0, 2 - (time.monotonic() - slot.started)))

    def _end(self) -> None:
        for slot in self.slots:
            slot.process.terminate()
        end = time.monotonic() + GRACE_SECONDS
        for slot in self.slots:
            slot.process.join(max(0.0, end - time.monotonic()))
            slot.process.kill()
            slot.process.join()
            slot.end_kernels()


def _slot(platform: Platform, runner: Connection, parent: int) -> None:
    _prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        return
    serve_one(platform, runner.send, runner.recv)


if __name__ == "__main__":
    main()
