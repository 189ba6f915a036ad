"""A part that fails or hangs is started again, is told of once, and ends nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from appliance.control.supervisor import RESTART, WELL, Life, Supervisor
from appliance.errors import HostError
from appliance.faults import Faults
from appliance.heartbeat import LONG_LOOK, STUBBORN, Heartbeat, Part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Status = trio.TaskStatus[None]

SILENCE = 4.0
BACK = SILENCE + LONG_LOOK + RESTART[0] + 0.1
"""Seconds in which a part that hangs is back."""


class World:
    """A supervisor at work."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.faults = Faults()
        self.supervisor = Supervisor(self.faults)
        self.runs: list[float] = []

    def part(self, work: Callable[[Heartbeat], Awaitable[None]], **fields: Any) -> Part:
        """A part that notes each of its runs and then does this."""

        async def run(beat: Heartbeat, *, task_status: Status) -> None:
            self.runs.append(trio.current_time())
            task_status.started()
            await work(beat)

        return Part(name="part", run=run, silence=SILENCE, **fields)

    async def start(self, work: Callable[[Heartbeat], Awaitable[None]], **fields: Any) -> None:
        """Start a part that does this."""
        await self.supervisor.start(self.part(work, **fields), self.nursery)

    @property
    def life(self) -> Life:
        """What the part does."""
        return self.supervisor.states["part"].life


async def look(supervisor: Supervisor) -> None:
    """Look now and then, as a timer does in an appliance."""
    while True:
        await trio.sleep(supervisor.look())


def play(script: Callable[[World], Awaitable[None]]) -> None:
    """Run a script beside a supervisor, on virtual time."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            nursery.start_soon(look, world.supervisor)
            await script(world)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def fail(_: Heartbeat) -> None:
    """Fail at once."""
    raise KeyError("what is not there")


async def hang(_: Heartbeat) -> None:
    """Never return."""
    await trio.sleep_forever()


async def live(beat: Heartbeat) -> None:
    """Do well."""
    await beat.sleep()


def test_a_part_that_fails_is_started_again_less_and_less_often() -> None:
    """Within 5 s each time, and what it fails with is told once, with its traceback, and counted."""

    async def script(world: World) -> None:
        with capture_logs() as lines:
            await world.start(fail)
            await trio.sleep(60)
        assert len(lines) == 1
        assert isinstance(lines[0]["exc_info"], KeyError)
        assert lines[0]["cause"] == "KeyError: 'what is not there'"
        gaps = [b - a for a, b in zip(world.runs, world.runs[1:], strict=False)]
        assert gaps[: len(RESTART)] == pytest.approx(RESTART)
        assert max(gaps) <= 5.0
        state = world.supervisor.states["part"]
        assert len(world.runs) - 1 <= state.restarts <= len(world.runs)
        (fault,) = world.faults.list().values()
        assert fault.count == state.restarts
        assert "part, a part of the control plane, has failed" in fault.what

    play(script)


def test_one_that_hangs_is_back_in_its_time() -> None:
    """It is cancelled there, and the line that it waited at is told."""

    async def script(world: World) -> None:
        with capture_logs() as lines:
            await world.start(hang)
            await trio.sleep(BACK)
        assert len(world.runs) == 2
        assert world.runs[1] <= BACK
        assert "showed no progress for 4 s" in lines[0]["cause"]
        assert "exc_info" not in lines[0]

    play(script)


def test_the_complaint_is_over_once_it_is_well_again() -> None:
    """Until then `meshbox check` tells of it; the count stays."""

    async def script(world: World) -> None:
        async def once(beat: Heartbeat) -> None:
            await (fail if len(world.runs) == 1 else live)(beat)

        await world.start(once)
        await trio.sleep(WELL - 1)
        assert world.life is Life.RUNNING
        assert world.faults.current
        await trio.sleep(2 + LONG_LOOK)
        assert not world.faults.current
        assert world.supervisor.states["part"].restarts == 1
        assert world.supervisor.states["part"].failures == 0

    play(script)


def test_others_go_on() -> None:
    """Nothing that one part does reaches another."""

    async def script(world: World) -> None:
        beats = 0

        async def other(beat: Heartbeat, *, task_status: Status) -> None:
            nonlocal beats
            task_status.started()
            while True:
                await beat.sleep(1)
                beats += 1

        await world.supervisor.start(Part(name="other", run=other, silence=SILENCE), world.nursery)
        await world.start(fail)
        await trio.sleep(100)
        assert beats >= 99
        assert world.supervisor.states["other"].restarts == 0

    play(script)


@pytest.mark.parametrize("awaited", [True, False])
def test_what_cannot_start_at_first_is_the_starts_error(awaited: bool) -> None:
    """One that has started by then is started again, also before the whole is ready."""

    async def refuse(_: Heartbeat, *, task_status: Status) -> None:
        await trio.lowlevel.checkpoint()
        raise HostError("it is not there", "put it there")

    async def script(world: World) -> None:
        await world.start(fail)
        await world.supervisor.start(Part(name="refusing", run=refuse, awaited=awaited), world.nursery)
        await trio.sleep(1)

    with pytest.raises(ExceptionGroup) as caught:
        play(script)
    first: BaseException = caught.value
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert str(first) == "it is not there: put it there"


def test_once_all_is_ready_nothing_is_raised() -> None:
    """Not even by a part whose first start takes longer than that."""

    async def slow(_: Heartbeat, *, task_status: Status) -> None:
        await trio.sleep(1)
        if trio.current_time() < 5:
            raise HostError("not yet")
        task_status.started()
        await trio.sleep_forever()

    async def script(world: World) -> None:
        await world.supervisor.start(Part(name="part", run=slow, awaited=False, silence=100), world.nursery)
        world.supervisor.ready = True
        await trio.sleep(20)
        assert world.life is Life.RUNNING

    play(script)


def test_a_first_start_may_take_its_time() -> None:
    """As an appliance that starts while Docker does; from then on each start has the part's own."""

    async def slow(_: Heartbeat, *, task_status: Status) -> None:
        await trio.sleep(10 * SILENCE)
        task_status.started()
        await trio.sleep_forever()

    async def script(world: World) -> None:
        await world.supervisor.start(Part(name="part", run=slow, silence=SILENCE), world.nursery)
        began = trio.current_time()
        assert began == 10 * SILENCE
        await trio.sleep(4 * BACK)
        assert world.supervisor.states["part"].restarts >= 3

    play(script)


def test_one_that_returns_is_started_again_unless_it_may() -> None:
    """A part that lasts does not return for nothing."""

    async def done(_: Heartbeat) -> None:
        await trio.lowlevel.checkpoint()

    async def script(world: World) -> None:
        await world.start(done)
        await trio.sleep(1)
        assert len(world.runs) > 1
        assert [fault.cause for fault in world.faults.list().values()] == ["it returned"]
        world.runs.clear()
        await world.supervisor.start(Part(name="one that ends", run=world.part(done).run, may_end=True), world.nursery)
        await trio.sleep(10)
        assert world.supervisor.states["one that ends"].life is Life.ENDED

    play(script)


def test_several_errors_at_once_are_one_failure() -> None:
    """As from a nursery, also where one of them is that of a cancellation inside."""

    async def script(world: World) -> None:
        async def both(_: Heartbeat) -> None:
            raise ExceptionGroup("two", [ValueError("a"), ExceptionGroup("one", [TypeError("b")])])

        with capture_logs() as lines:
            await world.start(both)
            await trio.sleep(0.05)
        assert [isinstance(line["exc_info"], ExceptionGroup) for line in lines] == [True]
        assert world.life is Life.FAILED

    play(script)


def test_an_end_amid_a_failure_is_an_end() -> None:
    """A part that fails because it is cancelled does not make the end of an appliance a failure."""

    async def stubborn(beat: Heartbeat) -> None:
        try:
            await beat.sleep()
        finally:
            raise OSError("it broke on the way out")

    async def script(world: World) -> None:
        await world.start(stubborn)
        await trio.testing.wait_all_tasks_blocked()

    play(script)


def test_what_cannot_be_cancelled_is_told_and_awaited() -> None:
    """A second one beside it would do everything twice."""

    async def script(world: World) -> None:
        end = trio.Event()

        async def shielded(beat: Heartbeat) -> None:
            with trio.CancelScope(shield=True):
                await end.wait()
            await beat.sleep()

        with capture_logs() as lines:
            await world.start(shielded)
            await trio.sleep(BACK + STUBBORN + LONG_LOOK)
        assert world.life is Life.STUCK
        assert len(world.runs) == 1
        assert ["hangs and cannot be cancelled" in line["event"] for line in lines] == [True]
        end.set()
        await trio.sleep(1)
        assert len(world.runs) == 2
        assert world.life is Life.RUNNING

    play(script)


class BrokenError(Exception):
    """An error that cannot even be worded."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_without_words_is_an_error_like_others() -> None:
    """It is named by its kind."""

    async def script(world: World) -> None:
        async def broken(_: Heartbeat) -> None:
            raise BrokenError

        await world.start(broken)
        await trio.sleep(1)
        assert [fault.cause for fault in world.faults.list().values()] == ["BrokenError"]

    play(script)


def test_a_log_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part is started again all the same."""

    async def script(world: World) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError("no space")

        monkeypatch.setattr(world.faults, "report", refuse)
        await world.start(fail)
        await trio.sleep(1)
        assert len(world.runs) >= 2

    play(script)
