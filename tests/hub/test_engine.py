"""The engine of the tests itself: it answers, its base image runs Python, and two of them are two."""

from __future__ import annotations

import engine as engines


def test_the_base_image_runs_python_as_whoever_it_is_told(engine: engines.Engine) -> None:
    out = engine.client.containers.run(
        engine.base(),
        ["python3", "-c", "import os; print(os.getuid(), 5 * 4)"],
        user="1000",
        network_mode="none",
        remove=True,
    )
    assert out.split() == [b"1000", b"20"]


def test_two_engines_see_nothing_of_each_other(engine: engines.Engine) -> None:
    name = "cellwork-test-one"
    engine.client.containers.create(engine.base(), ["true"], name=name, network_mode="none")
    try:
        with engines.started() as other:
            assert other.address != engine.address
            assert other.left() == []
        assert name in engine.left()
    finally:
        engine.client.containers.get(name).remove()
