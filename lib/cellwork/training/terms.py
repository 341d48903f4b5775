"""What a race is run for, and what ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cellwork.training.candidates import Candidate, Step
from cellwork.training.ending import Finalists

Choose = Callable[[list[Candidate], list[Candidate]], Candidate | None]


@dataclass
class Terms:
    """What a race is run for, and what ends it."""

    metric: str
    deadline: float
    """On the monotonic clock; an error."""
    budget: float | None = None
    """Seconds; what is done then is the answer."""
    stop: threading.Event = field(default_factory=threading.Event)
    progress: Callable[[Step], None] = print
    share: bool = True
    """Whether candidates have first steps in common."""
    answers: bool = False
    """Whether what finalists answered to the folds is kept, for a blend of them."""
    finalists: Finalists | None = None
    """Which of the candidates may be, or be part of, the answer, the likeliest first; default: the best one."""
    choose: Choose | None = None
    """Which of the candidates, and of those that are fitted on all rows, is the answer; default: the best one."""
