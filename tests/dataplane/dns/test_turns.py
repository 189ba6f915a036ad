"""Turns of askers: a queue for each, bounded, one question of each again and again."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from appliance.dataplane.dns import turns
from appliance.dataplane.dns.turns import AT_A_TIME, Turns
from tests.dataplane.dnsworld import run, until

if TYPE_CHECKING:
    import pytest


def test_askers_take_turns() -> None:
    """One question of an asker waits for one of each other asker, however many it has."""

    async def main() -> None:
        waiting, answered = Turns(asyncio.get_running_loop()), []
        for number in range(20):
            waiting.add("greedy", partial(answered.append, number))
        for number in range(2):
            waiting.add("modest", partial(answered.append, f"modest {number}"))
        assert waiting
        await until(lambda: not waiting)
        assert answered == [0, "modest 0", 1, "modest 1", *range(2, 20)]

    run(main)


def test_the_rest_of_the_loop_has_its_turn() -> None:
    """After a few questions."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiting, seen = Turns(loop), []
        for number in range(3 * AT_A_TIME):
            waiting.add("asker", partial(seen.append, number))

        def other() -> None:
            seen.append("other")
            if waiting:
                loop.call_soon(other)

        loop.call_soon(other)
        await until(lambda: not waiting)
        assert seen[: 2 * AT_A_TIME + 2 : AT_A_TIME + 1] == [0, AT_A_TIME]
        assert seen[AT_A_TIME] == "other"

    run(main)


def test_an_asker_whose_queue_is_full_loses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another asker's question finds room; what something else bounds always waits."""
    monkeypatch.setattr(turns, "MOST_WAITING", 3)

    async def main() -> None:
        waiting, answered = Turns(asyncio.get_running_loop()), []
        assert [waiting.add("greedy", partial(answered.append, number)) for number in range(4)] == [True] * 3 + [False]
        assert waiting.add("modest", partial(answered.append, "modest"))
        assert waiting.add("greedy", partial(answered.append, "by TCP"), bounded=False)
        await until(lambda: not waiting)
        assert answered == [0, "modest", 1, 2, "by TCP"]

    run(main)


def test_closed_turns_answer_nobody() -> None:
    """Their sockets are closed."""

    async def main() -> None:
        waiting, answered = Turns(asyncio.get_running_loop()), []
        waiting.add("asker", partial(answered.append, 1))
        waiting.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not answered

    run(main)
