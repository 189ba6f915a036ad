"""The lease of port claims is renewed while these are fresh; tests/system has the kernel end it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from appliance.drivers.nft import lease
from appliance.faults import Faults


def test_it_is_renewed_while_claims_are_fresh_and_a_fault_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 20 s; a loop that stands still lets it lapse, and so does its end."""
    now: list[float] = []
    faults, fresh = Faults(), [True, True, False, False, True, True]
    told = []

    def renew(seconds: float) -> None:
        assert seconds == 60
        now.append(trio.current_time())
        if len(now) == 2:
            raise OSError(2, "No such file or directory")

    monkeypatch.setattr(lease, "renew", renew)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            kept = lease.Lease(fresh=lambda: fresh.pop(0), faults=faults)
            await nursery.start(kept.run)
            begin = trio.current_time()
            for _ in range(6):
                await trio.sleep(20)
                await trio.testing.wait_all_tasks_blocked()
                told.append(list(faults.list()))
            now[:] = [round(time - begin) for time in now]
            kept.stop()
            await trio.sleep(100)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert now == [20, 40, 100, 120]
    assert told == [[], ["lease"], ["lease"], ["lease"], [], []]


def test_two_renewals_may_fail() -> None:
    """The third still comes in time."""
    assert lease.EVERY * 3 <= lease.LEASE
