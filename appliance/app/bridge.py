"""Trio as a guest on uvloop: the one module that knows both colours.

Data-plane callbacks and control-plane tasks share one thread, so that plain synchronous calls cross between them;
only starting, stopping and signals need this bridge. Rules that were learnt the hard way: Trio must end
before the host loop does, and signals are handled on the loop.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, TypeVar

import trio
import uvloop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import outcome

    from appliance.dataplane.api import DataPlane, Question

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(main: Callable[[asyncio.AbstractEventLoop, trio.Event], Awaitable[int]]) -> int:
    """Run the Trio function `main(loop, stopping)` as a guest on a new uvloop and return its exit code.

    The first SIGTERM or SIGINT sets `stopping`; a second one cancels everything. What `main` raises is raised here.
    """
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    result: list[outcome.Outcome[int]] = []
    stopping = trio.Event()
    scope = trio.CancelScope()
    signals = 0

    async def guest() -> int:
        token = trio.lowlevel.current_trio_token()

        def on_signal() -> None:
            nonlocal signals
            signals += 1
            token.run_sync_soon(stopping.set if signals == 1 else scope.cancel)

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, on_signal)
        with scope:
            return await main(loop, stopping)
        return 1

    def done(outcome_of_guest: outcome.Outcome[int]) -> None:
        result.append(outcome_of_guest)
        loop.stop()

    trio.lowlevel.start_guest_run(
        guest,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        run_sync_soon_not_threadsafe=loop.call_soon,
        done_callback=done,
        host_uses_signal_set_wakeup_fd=True,
        restrict_keyboard_interrupt_to_checkpoints=True,
    )
    try:
        loop.run_forever()
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return result[0].unwrap()


def repeat(loop: asyncio.AbstractEventLoop, work: Callable[[], float]) -> Callable[[], None]:
    """Call `work` in Trio by a timer of the loop, again after as many seconds as it returns; return what ends that.

    It works whatever Trio's tasks do. `work` must not raise.
    """
    token = trio.lowlevel.current_trio_token()
    timer: list[asyncio.TimerHandle] = []

    def tick() -> None:
        token.run_sync_soon(once)

    def once() -> None:
        if timer:
            timer[:] = [loop.call_later(work(), tick)]

    def stop() -> None:
        timer.pop().cancel()

    timer.append(loop.call_later(0, tick))
    return stop


async def answer(plane: DataPlane, question: Question[T]) -> T:
    """Ask the data plane and wait for what it says."""
    token = trio.lowlevel.current_trio_token()
    told = trio.Event()
    said: list[T] = []

    def tell(value: T) -> None:
        said.append(value)
        token.run_sync_soon(told.set)

    plane.ask(question, tell)
    if said:
        await trio.lowlevel.checkpoint()
    else:
        await told.wait()
    return said[0]
