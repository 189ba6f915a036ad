"""Since when and why facts are held. The clock is virtual."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from appliance.drivers.consul.staleness import START, Staleness


class World:
    """A staleness at a time since the epoch that moves with the virtual clock, and how often it has changed."""

    def __init__(self):
        self.changes = 0
        self.staleness = Staleness(lambda: 1000.0 + trio.current_time(), self._changed)

    def _changed(self):
        self.changes += 1


def run(script):
    """Run a script in a world of its own, on virtual time."""

    async def main():
        await script(World())

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_since_the_first_failure_until_the_last_is_over():
    """Facts are held from the first query that fails until all work again; the first reason is told."""

    async def script(world):
        began, staleness = trio.current_time(), world.staleness
        assert (staleness.since, staleness.why) == (None, "")
        staleness.failed("a", "no leader")
        await trio.sleep(5)
        staleness.failed("b", "refused")
        assert (staleness.since, staleness.why) == (1000.0 + began, "no leader")
        staleness.over("a")
        assert (staleness.since, staleness.why) == (1000.0 + began, "refused")
        staleness.over("b")
        assert (staleness.since, staleness.why) == (None, "")

    run(script)


@pytest.mark.parametrize("order", [(START, "a"), ("a", START)])
def test_the_start_is_no_reason_beside_another(order):
    """That nothing was heard yet is told only where no query says why."""

    async def script(world):
        for query in order:
            world.staleness.failed(query, f"cause of {query}")
        assert world.staleness.why == "cause of a"
        world.staleness.over("a")
        assert world.staleness.why == f"cause of {START}"

    run(script)


def test_a_change_is_told_once():
    """The same failure again, or the end of none, changes nothing; another cause does."""

    async def script(world):
        world.staleness.over("a")
        assert world.changes == 0
        for cause in ("no leader", "no leader", "refused"):
            world.staleness.failed("a", cause)
        assert world.changes == 2
        world.staleness.over("a")
        world.staleness.over("a")
        assert world.changes == 3

    run(script)


def test_how_long_a_query_has_failed():
    """The time counts from the first failure in a row, whatever its cause."""

    async def script(world):
        assert world.staleness.lasted("a") == 0
        world.staleness.failed("a", "no leader")
        await trio.sleep(5)
        world.staleness.failed("a", "refused")
        await trio.sleep(2)
        assert world.staleness.lasted("a") == 7
        assert world.staleness.lasted("b") == 0
        world.staleness.over("a")
        assert world.staleness.lasted("a") == 0
        world.staleness.failed("a", "refused")
        assert world.staleness.lasted("a") == 0

    run(script)
