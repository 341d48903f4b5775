"""The predictor's child process: `python -m cellwork.serving.child FOLDER`. Loads one model and answers until its input ends.

Questions come on standard input and answers leave on what was standard output; what the model prints goes to standard
error. When the parent is gone, however it went, the child ends at once.
"""

from __future__ import annotations

import math
import os
import queue
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from cellwork.serving import messages
from cellwork.serving.messages import Ask, Failed, Ready, Scores
from cellwork.serving.model import Model, load


def main(folder: Path) -> None:
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
    main(Path(sys.argv[1]))
