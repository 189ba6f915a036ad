"""Work that shows no progress in its time is cancelled, and nothing else is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from appliance.app.shutdown import wait_drained
from appliance.heartbeat import LONG_LOOK, STUBBORN, UNWATCHED, Heartbeat, Heartbeats, StuckError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIMIT = 8.0
LAST = LIMIT + LONG_LOOK
"""Seconds within which a silence is found out."""


async def look(hearts: Heartbeats) -> None:
    """Look now and then, as a timer does in an appliance."""
    while True:
        await trio.sleep(hearts.look())


def watched(script: Callable[[Heartbeats], Awaitable[Any]]) -> Any:
    """Run a script beside a watch, on virtual time; return what it returns."""

    async def main() -> Any:
        hearts = Heartbeats()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, hearts)
            found = await script(hearts)
            nursery.cancel_scope.cancel()
        return found

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_await_that_never_returns_is_cancelled() -> None:
    """In the time that was named; the error says where it waited."""

    async def script(hearts: Heartbeats) -> float:
        began = trio.current_time()
        words = r"^the thing showed no progress for 8 s; it waited at "
        with pytest.raises(StuckError, match=words), Heartbeat(LIMIT, name="the thing", among=hearts):
            await trio.sleep_forever()
        return trio.current_time() - began

    assert LIMIT < watched(script) <= LAST


def test_the_line_that_is_waited_at_is_ours() -> None:
    """That of the innermost module of the appliance, and the call that it ends in."""

    async def script(hearts: Heartbeats) -> None:
        words = r"it waited at app/shutdown\.py:\d+ in sleep_forever\(\)$"
        with pytest.raises(StuckError, match=words), Heartbeat(LIMIT, among=hearts):
            await wait_drained(trio.sleep_forever, 1.0)

    watched(script)


def test_whoever_beats_goes_on() -> None:
    """By a call, by a wait for what never comes, and by a sleep; for longer than its limit each."""

    async def script(hearts: Heartbeats) -> None:
        with Heartbeat(LIMIT, among=hearts) as beat:
            for _ in range(5):
                await trio.sleep(LIMIT * 0.9)
                beat()
            assert not await beat.wait(trio.Event(), 5 * LIMIT)
            await beat.sleep(5 * LIMIT)
            with trio.move_on_after(5 * LIMIT) as patience:
                await beat.until(trio.sleep_forever)
            assert patience.cancelled_caught

    watched(script)


def test_a_wait_ends_with_its_event() -> None:
    """At once where it is set, and when it is set."""

    async def script(hearts: Heartbeats) -> None:
        with Heartbeat(LIMIT, among=hearts) as beat:
            event = trio.Event()
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                nursery.start_soon(lambda: _set_after(event, 3.0))
                assert await beat.wait(event, 100.0)
                assert trio.current_time() - began == 3.0
            assert await beat.wait(event, 0.0)
            assert not await beat.wait(trio.Event(), 0.0)

    async def _set_after(event: trio.Event, seconds: float) -> None:
        await trio.sleep(seconds)
        event.set()

    watched(script)


def test_a_task_beside_beats_for_itself_only() -> None:
    """A part that hangs while its child beats is found out, and so is a child that hangs while its part beats."""

    async def script(hearts: Heartbeats) -> None:
        with suppress(StuckError), Heartbeat(LIMIT, among=hearts) as beat:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(beat.another("child").sleep)
                await trio.sleep_forever()
        assert trio.current_time() <= LAST

        with Heartbeat(LIMIT, among=hearts) as beat:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hang, beat)
                await beat.sleep(3 * LIMIT)

    async def hang(beat: Heartbeat) -> None:
        with pytest.raises(StuckError, match="the child"), beat.another("the child"):
            await trio.sleep_forever()

    watched(script)


def test_a_pause_of_the_whole_process_is_nobodys_fault() -> None:
    """After a SIGSTOP or in a debugger nothing could beat."""

    async def main() -> None:
        hearts = Heartbeats()
        with Heartbeat(LIMIT, among=hearts) as beat:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look, hearts)
                nursery.start_soon(beat.sleep)
                for _ in range(3):
                    await trio.testing.wait_all_tasks_blocked()
                    clock.jump(10 * LIMIT)
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    clock = trio.testing.MockClock()
    trio.run(main, clock=clock)


def test_what_cannot_be_cancelled_is_known() -> None:
    """An await that shields itself goes on, and stands in the list of what is stubborn until it ends."""

    async def script(hearts: Heartbeats) -> None:
        end = trio.Event()

        async def shielded() -> None:
            with trio.CancelScope(shield=True):
                await end.wait()
            await trio.lowlevel.checkpoint()

        async def work() -> None:
            with pytest.raises(StuckError), Heartbeat(LIMIT, name="work", among=hearts):
                await shielded()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.sleep(LAST + STUBBORN)
            assert [one.name for one in hearts.stubborn] == ["work"]
            end.set()
        assert hearts.stubborn == ()

    watched(script)


def test_an_error_of_the_work_is_raised_as_it_is() -> None:
    """Also where the work is cancelled from outside."""

    async def script(hearts: Heartbeats) -> None:
        with pytest.raises(ZeroDivisionError), Heartbeat(LIMIT, among=hearts):
            _ = 1 / 0
        with trio.move_on_after(1) as scope, Heartbeat(LIMIT, among=hearts):
            await trio.sleep_forever()
        assert scope.cancelled_caught

    watched(script)


def test_unwatched_work_may_take_any_time() -> None:
    """As in tests of the parts."""

    async def main() -> None:
        with UNWATCHED.another("x") as beat:
            assert not await beat.wait(trio.Event(), 1000.0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
