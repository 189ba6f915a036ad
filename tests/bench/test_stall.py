from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import stall


class _Loop:
    """A loop that is asked to call later, and does when told."""

    def call_later(self, _delay: float, what: object) -> None:
        self.what = what


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Where the time is put."""
    now = [100.0]
    monkeypatch.setattr(stall, "monotonic", lambda: now[0])
    return now


def test_a_stall_is_the_whole_distance_between_two_looks(tmp_path: Path, clock: list[float]) -> None:
    """What traffic waited may be all of it: nothing is taken off."""
    loop = _Loop()
    ticker = stall.Ticker(loop, tmp_path)  # type: ignore[arg-type]
    for later in (100.001, 100.0065, 100.0075):
        clock[0] = later
        ticker._tick()
    assert stall.worst(tmp_path)[0] == pytest.approx(0.0055)


def test_a_loop_that_is_busy_is_seen(tmp_path: Path) -> None:
    """In a real one, and no more after a reset."""

    async def main() -> None:
        ticker = stall.Ticker(asyncio.get_running_loop(), tmp_path)
        await asyncio.sleep(0.005)
        stall.reset(tmp_path)
        end = stall.monotonic() + 0.05
        while stall.monotonic() < end:
            pass
        await asyncio.sleep(0.005)
        del ticker

    asyncio.run(main())
    assert stall.worst(tmp_path)[0] >= 0.05
    stall.reset(tmp_path)
    assert stall.worst(tmp_path) == (0, 0)


def test_waiting_for_a_cpu_is_told_from_working(tmp_path: Path) -> None:
    """Where another program has the CPU for the whole of a stall, that is seen, and work is not taken for it."""

    async def main() -> tuple[float, float]:
        ticker = stall.Ticker(asyncio.get_running_loop(), tmp_path)
        end = stall.monotonic() + 0.2
        while stall.monotonic() < end:
            await asyncio.sleep(0)
            busy = stall.monotonic() + 0.002
            while stall.monotonic() < busy:
                pass
        del ticker
        return stall.worst(tmp_path)

    allowed = os.sched_getaffinity(0)
    cpu = min(allowed)
    os.sched_setaffinity(0, {cpu})
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            longest, waited = asyncio.run(main())
            other.kill()
    finally:
        os.sched_setaffinity(0, allowed)
    assert 0.2 * longest < waited <= longest
