from __future__ import annotations

import pytest

from cellwork.data import search
from cellwork.errors import BadInput
from cellwork.wire.search import Found

ENTRIES = [
    Found(kind="view", project="air", name="weather", owner="ada", entities=["origin"], tags={"team": "ops"}),
    Found(kind="feature", project="air", name="weather:wind_speed", owner="ada", description="Knots, at the airport"),
    Found(kind="raw", project="air", name="flights", description="Departures and their delay"),
    Found(kind="label", project="air", name="departures:late", description="More than 15 minutes of delay"),
]


def names(question: str) -> list[str]:
    return [found.name for found in search.best([*ENTRIES], question)]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("weather", ["weather", "weather:wind_speed"]),
        ("wind", ["weather:wind_speed"]),
        ("WIND speed", ["weather:wind_speed"]),
        ("delay", ["departures:late", "flights"]),
        ("depart", ["departures:late", "flights"]),
        ("ops", ["weather"]),
        ("origin ada", ["weather"]),
        ("wether", ["weather", "weather:wind_speed"]),
        ("label", ["departures:late"]),
        ("weather nothing", []),
    ],
)
def test_every_word_must_be_found_and_names_count_most(question: str, expected: list[str]) -> None:
    assert names(question) == expected


def test_a_question_without_a_word_is_refused() -> None:
    with pytest.raises(BadInput, match="holds no word"):
        search.best(ENTRIES, " -- ")
