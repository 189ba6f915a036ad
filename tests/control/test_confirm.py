"""The data plane hears that events were read: at once as a rule, and after a standstill once they really were."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from appliance.control.confirm import PATIENCE, Confirmer
from appliance.errors import RetryError
from appliance.faults import Faults


class World:
    """A confirmer, and what it did at what time, on a clock that may jump."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.faults = Faults()
        self.error: RetryError | None = None
        self.hangs = False

    async def catch_up(self) -> None:
        """Read events."""
        await trio.lowlevel.checkpoint()
        self.told.append("read")
        if self.error is not None:
            raise self.error
        if self.hangs:
            await trio.sleep_forever()

    async def settle(self) -> None:
        """Make a pass."""
        await trio.lowlevel.checkpoint()
        self.told.append("pass")

    def play(self, scene) -> None:
        """Run a scene beside it."""

        async def main() -> None:
            made = Confirmer(
                confirm=lambda: self.told.append("confirm"),
                catch_up=self.catch_up,
                settle=self.settle,
                faults=self.faults,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.run)
                await trio.testing.wait_all_tasks_blocked()
                await scene(trio.lowlevel.current_clock())
                nursery.cancel_scope.cancel()

        trio.run(main, clock=trio.testing.MockClock())


async def jump(clock, seconds: float) -> None:
    """Let the clock move on at once, as after a standstill."""
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


def test_at_work_it_confirms_and_asks_nothing():
    """Ten times a second."""
    world = World()

    async def scene(clock) -> None:
        for _ in range(5):
            await jump(clock, 0.11)

    world.play(scene)
    assert world.told == ["confirm"] * 6


def test_after_a_standstill_events_are_read_and_carried_out_first():
    """Then it goes on as before."""
    world = World()

    async def scene(clock) -> None:
        await jump(clock, 1.0)
        await jump(clock, 0.11)

    world.play(scene)
    assert world.told == ["confirm", "read", "pass", "confirm", "confirm"]


@pytest.mark.parametrize("hangs", [False, True])
def test_traffic_does_not_wait_for_a_docker_that_is_away_or_hangs(hangs):
    """It is one fault, over with the next standstill after which events can be read."""
    world = World()
    world.hangs, world.error = hangs, None if hangs else RetryError("no Docker Engine answers")

    async def scene(clock) -> None:
        await jump(clock, 1.0)
        if hangs:
            assert world.told == ["confirm", "read"]
            await jump(clock, PATIENCE)
        assert world.told == ["confirm", "read", "confirm"]
        assert list(world.faults.list()) == ["standstill"]
        world.error, world.hangs = None, False
        await jump(clock, 1.0)
        assert world.told[3:] == ["read", "pass", "confirm"]
        assert not world.faults.list()

    world.play(scene)
