"""Trio as a guest of uvloop: results, errors and signals cross."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from appliance.app import bridge
from appliance.dataplane import api


def test_returns_what_the_guest_returns() -> None:
    """The exit code is the guest's."""

    async def main(loop, stopping) -> int:
        await trio.lowlevel.checkpoint()
        return 7

    assert bridge.run(main) == 7


def test_raises_what_the_guest_raises_and_can_run_again() -> None:
    """A fault at start reaches the caller, and the next run works."""

    async def broken(loop, stopping) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bridge.run(broken)
    test_returns_what_the_guest_returns()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_asks_to_stop_and_cleanup_runs(number) -> None:
    """SIGTERM and SIGINT set `stopping`; the guest ends in its own time."""
    order = []

    async def main(loop, stopping) -> int:
        os.kill(os.getpid(), number)
        try:
            await stopping.wait()
            order.append("stopping")
        finally:
            order.append("cleanup")
        return 0

    assert bridge.run(main) == 0
    assert order == ["stopping", "cleanup"]


def test_second_signal_cancels() -> None:
    """Whoever asks twice does not wait; `finally` still runs."""
    order = []

    async def main(loop, stopping) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await stopping.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await trio.sleep_forever()
        finally:
            order.append("cleanup")
        return 0

    assert bridge.run(main) == 1
    assert order == ["cleanup"]


def test_loop_callbacks_run_beside_trio() -> None:
    """Both colours make progress on the one thread."""

    async def main(loop, stopping) -> int:
        seen = trio.Event()
        token = trio.lowlevel.current_trio_token()
        loop.call_later(0.001, token.run_sync_soon, seen.set)
        await seen.wait()
        return 0

    assert bridge.run(main) == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_answers_of_the_data_plane_can_be_awaited(at_once) -> None:
    """A question is answered at once or later by a callback of the loop; the asker gets the answer either way."""

    class DataPlane:
        def __init__(self, loop) -> None:
            self.loop = loop

        def ask(self, question, tell) -> None:
            if at_once:
                tell(question.method)
            else:
                self.loop.call_later(0.01, tell, question.method)

    found = []

    async def main(loop, stopping) -> int:
        found.append(await bridge.answer(DataPlane(loop), api.LEFT))
        return 0

    assert bridge.run(main) == 0
    assert found == ["left"]


def test_a_timer_of_the_loop_works_in_trio() -> None:
    """Again and again, whatever Trio's tasks do, until it is ended."""
    times = []

    async def main(loop, stopping) -> int:
        def work() -> float:
            times.append(trio.current_time())
            return 0.01

        stop = bridge.repeat(loop, work)
        while len(times) < 3:
            await trio.sleep(0.001)
        stop()
        seen = len(times)
        await trio.sleep(0.05)
        assert len(times) == seen
        return 0

    assert bridge.run(main) == 0
