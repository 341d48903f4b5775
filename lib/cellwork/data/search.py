"""Search by words over what a platform knows of its data. Pure: entries and a question in, the best entries out.

Each word must be found somewhere in an entry: as a word of its text, as the beginning of one, or misspelt. Where it is found
counts: a name more than an entity, an owner or a tag, and those more than a description. Ties go by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from cellwork.errors import BadInput
from cellwork.wire.search import Found

WORD = re.compile(r"[^\W_]+")
NAME, ABOUT, TEXT = 5.0, 3.0, 1.0
EXACT, BEGINS, NEAR = 1.0, 0.7, 0.4


def best(entries: Iterable[Found], question: str, *, limit: int = 50) -> list[Found]:
    """Return the entries that hold every word of `question`, best first; scores are set.

    Raises
    ------
    BadInput
        The question holds no word.
    """
    words = _words(question)
    if not words:
        raise BadInput("search", question, "holds no word", "ask for a name, an owner, a tag or an entity")
    found = []
    for entry in entries:
        fields = _fields(entry)
        scores = [max(weight * _match(word, there) for weight, there in fields) for word in words]
        if all(scores):
            entry.score = round(sum(scores) / len(scores), 3)
            found.append(entry)
    found.sort(key=lambda entry: (-entry.score, entry.project, entry.name))
    return found[:limit]


def _fields(entry: Found) -> list[tuple[float, list[str]]]:
    tags = [text for pair in entry.tags.items() for text in pair]
    about = " ".join([entry.owner, entry.project, entry.kind, *entry.entities, *tags])
    return [(NAME, _words(entry.name)), (ABOUT, _words(about)), (TEXT, _words(entry.description))]


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _match(word: str, there: Sequence[str]) -> float:
    if word in there:
        return EXACT
    if any(other.startswith(word) for other in there):
        return BEGINS
    return NEAR if len(word) > 3 and difflib.get_close_matches(word, there, n=1, cutoff=0.8) else 0.0
