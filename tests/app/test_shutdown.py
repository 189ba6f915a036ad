"""A drain says how many connections are left, for how long they may go on, and how it ended."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from appliance.app.shutdown import MORE, finish, wait_drained


def told(seconds: float, ends: list[float]) -> tuple[list[tuple[object, ...]], float]:
    """Return what is logged while connections end after so many seconds each, and how long it takes."""

    async def main() -> float:
        began = trio.current_time()

        async def left() -> int:
            return sum(end > trio.current_time() - began for end in ends)

        await wait_drained(left, seconds)
        return trio.current_time() - began

    with capture_logs() as lines:
        took = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return [(line["event"], line.get("connections"), line.get("seconds")) for line in lines], took


def test_nothing_open_is_nothing_to_say() -> None:
    """It ends at once."""
    assert told(10, []) == ([], 0.0)


def test_progress_is_told_until_the_last_has_ended() -> None:
    """Every two seconds; it does not wait longer than for the last one."""
    lines, took = told(60, [1.0, 5.0])
    assert lines == [
        ("draining", 2, 60),
        ("still draining", 1, 58),
        ("still draining", 1, 56),
        ("drained", None, None),
    ]
    assert 5.0 <= took < 5.1


def test_those_that_stay_are_cut_off() -> None:
    """After the time that the configuration gives, which may be none."""
    lines, took = told(3, [1.0, 100.0])
    assert lines == [("draining", 2, 3), ("still draining", 1, 1), ("connections are cut off", 1, None)]
    assert took == 3.0
    assert told(0, [1.0])[0] == [("draining", 1, 0), ("connections are cut off", 1, None)]


def test_what_fails_at_the_end_keeps_nothing_else_from_it() -> None:
    """It is told with its traceback; so is what takes too long."""

    async def broken() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("what")

    async def main() -> float:
        await finish("this", broken)
        await finish("that", trio.sleep_forever, 5.0)
        return trio.current_time()

    with capture_logs() as lines:
        clock = trio.testing.MockClock(autojump_threshold=0)
        began = clock.current_time()
        took = trio.run(main, clock=clock) - began
    assert took == pytest.approx(5.0 + MORE)
    assert [(line["doing"], line.get("cause")) for line in lines] == [("this", "KeyError: 'what'"), ("that", None)]
