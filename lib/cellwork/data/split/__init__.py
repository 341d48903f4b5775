"""Split a dataset into parts, with the warnings that a careful colleague would give.

Every way of cutting gives a number to each row (`ways`), the numbers become parts (`parts`), and the parts are looked at
(`leaks`, `shape`): a warning names its numbers and the way out. A recipe holds all that `replay` needs for equal parts.
Nothing is drawn twice: over- and undersampling and weights (`Part.oversampled` and its kin) are for the first part alone.
"""

from __future__ import annotations

from cellwork.data.split.folds import Folds, folds
from cellwork.data.split.kept import keep, recall
from cellwork.data.split.local import local
from cellwork.data.split.parts import Part, Split
from cellwork.data.split.replay import replay
from cellwork.data.split.using import using
from cellwork.data.split.ways import by_group, by_time, random, sequential, shuffled, stratified

__all__ = [
    "Folds", "Part", "Split", "by_group", "by_time", "folds", "keep", "local", "random", "recall", "replay", "sequential", "shuffled", "stratified", "using",
]  # fmt: skip
