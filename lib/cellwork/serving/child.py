"""The predictor's child process: `python -m cellwork.serving.child FOLDER MEGABYTES`. Loads one model and answers until its input ends.

Questions come on standard input and answers leave on what was standard output; what the model prints goes to standard
error. When the parent is gone, however it went, the child ends at once: its input ends and, where the model holds the interpreter and
nobody sees that, the kernel kills it. It has its own bound of memory, so that a model that wants too much fails alone.
"""

from __future__ import annotations

import ctypes
import math
import os
import queue
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from cellwork.serving import messages
from cellwork.serving.messages import Ask, Failed, Ready, Scores
from cellwork.serving.model import Model, load

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2): the signal that this process gets when the thread that started it ends."""


def main(folder: Path, megabytes: int) -> None:
    _bound(megabytes)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    asks: queue.SimpleQueue[Ask] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, asks), daemon=True).start()
    try:
        model = load(folder)
    except Exception as error:  # whatever an author's model raises is the answer, not our end
        _say(answers, Failed(0, f"did not load: {_text(error)}"))
        return
    _say(answers, Ready(model.how))
    while True:
        _say(answers, _answer(model, asks.get()))


def _bound(megabytes: int) -> None:
    """Bound address space, open files and core dumps, and end with the parent."""
    for kind, value in (
        (resource.RLIMIT_AS, megabytes * 1024**2),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value, hard) if hard == resource.RLIM_INFINITY else (min(value, hard), hard))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _listen(questions: BinaryIO, asks: queue.SimpleQueue[Ask]) -> None:
    while len(head := questions.read(messages.LENGTH.size)) == messages.LENGTH.size:
        asks.put(messages.ask(questions.read(messages.LENGTH.unpack(head)[0])))
    os._exit(0)


def _answer(model: Model, ask: Ask) -> messages.Answer:
    try:
        scores = model.scores(ask.columns)
    except Exception as error:  # the model is the author's: it may raise anything, and lives on
        return Failed(ask.number, _text(error))
    if len(scores) != ask.rows:
        return Failed(ask.number, f"{len(scores)} scores for {ask.rows} rows")
    return Scores(ask.number, [score if math.isfinite(score) else None for score in scores])


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _say(answers: BinaryIO, message: messages.Answer) -> None:
    view = memoryview(messages.frame(message))
    while view:
        view = view[answers.write(view) :]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
