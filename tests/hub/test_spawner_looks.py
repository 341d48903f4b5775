"""A look at a server in a container takes its time; meanwhile the server may be stopped, and another started under its name."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from cellwork_hub.config.containers import ContainerSpawner


class Slow(ContainerSpawner):
    """Its looks wait for the engine, and then find no container."""

    async def poll(self) -> int | None:
        await self.engine_answers.wait()
        return 0


def spawner() -> tuple[Slow, list[str]]:
    made, told = Slow(user=SimpleNamespace(name="anna")), []
    made.engine_answers = asyncio.Event()
    made.add_poll_callback(told.append, "the first ended")
    return made, told


def test_a_server_that_ended_is_told_of_once() -> None:
    async def look() -> list[str]:
        made, told = spawner()
        made.engine_answers.set()
        assert [await made.poll_and_notify() for _ in range(2)] == [0, 0]
        return told

    assert asyncio.run(look()) == ["the first ended"]


def test_a_look_that_began_before_a_stop_says_nothing_of_the_next_server() -> None:
    async def look() -> list[str]:
        made, told = spawner()
        looking = asyncio.ensure_future(made.poll_and_notify())
        await asyncio.sleep(0.01)
        made.run_post_stop_hook()  # the hub has stopped it on purpose
        made.add_poll_callback(told.append, "the second ended")
        made.engine_answers.set()
        await looking
        return told

    assert asyncio.run(look()) == []


def test_who_waited_for_a_server_that_was_stopped_is_not_told_of_the_next_ones_end() -> None:
    async def look() -> list[str]:
        made, told = spawner()
        made.run_post_stop_hook()
        made.add_poll_callback(told.append, "the second ended")
        made.engine_answers.set()
        await made.poll_and_notify()
        return told

    assert asyncio.run(look()) == ["the second ended"]


def test_a_container_that_a_look_itself_removed_is_told_of() -> None:
    async def look() -> list[str]:
        made, told = spawner()
        made.clear_state()  # the spawner asks itself for this at the end of its `stop`
        made.engine_answers.set()
        await made.poll_and_notify()
        return told

    assert asyncio.run(look()) == ["the first ended"]


def test_of_two_looks_at_once_one_tells() -> None:
    async def look() -> list[str]:
        made, told = spawner()
        looks = [asyncio.ensure_future(made.poll_and_notify()) for _ in range(2)]
        await asyncio.sleep(0.01)
        made.engine_answers.set()
        await asyncio.gather(*looks)
        return told

    assert asyncio.run(look()) == ["the first ended"]


def test_a_look_that_ends_while_the_hub_stops_the_server_says_nothing() -> None:
    async def look() -> list[str]:
        made, told = spawner()
        looking = asyncio.ensure_future(made.poll_and_notify())
        await asyncio.sleep(0.01)
        made._stop_pending = True
        made.engine_answers.set()
        await looking
        return told

    assert asyncio.run(look()) == []


def test_a_server_that_the_hub_found_at_its_start_is_looked_at() -> None:
    """The hub says first who waits, and then that looking begins."""

    async def look() -> list[str]:
        made, told = spawner()
        made.start_polling()
        made.stop_polling()
        made.engine_answers.set()
        await made.poll_and_notify()
        return told

    assert asyncio.run(look()) == ["the first ended"]


@pytest.mark.parametrize("waits", ["nobody", "who fails"])
def test_a_server_whose_end_reaches_nobody_is_ended_at_the_hub(waits: str) -> None:
    stopped = []

    class Ready(Slow):
        ready = True

    async def stop(name: str) -> None:
        stopped.append(name)

    def fail() -> None:
        raise TimeoutError("the proxy does not answer")

    async def look() -> None:
        made = Ready(user=SimpleNamespace(name="anna", stop=stop))
        made.engine_answers = asyncio.Event()
        made.engine_answers.set()
        if waits == "who fails":
            made.add_poll_callback(fail)
        assert await made.poll_and_notify() == 0

    asyncio.run(look())
    assert stopped == [""]
