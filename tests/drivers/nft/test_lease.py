"""The lease of port claims is renewed while these are fresh; tests/system has the kernel end it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from appliance.drivers.nft import lease
from appliance.faults import Faults


def test_it_is_renewed_while_claims_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 20 s, and a second later where the claims were not in place or the kernel refused; not after the end."""
    renewed: list[int] = []
    told: list[list[str]] = []
    faults = Faults()
    fresh = iter([True, False, False, True, True])

    def is_fresh() -> bool:
        told.append(list(faults.list()))
        return next(fresh, True)

    def renew(seconds: float) -> None:
        assert seconds == 60
        renewed.append(round(trio.current_time() - began[0]))
        if len(renewed) == 2:
            raise OSError(2, "No such file or directory")

    began: list[float] = []
    monkeypatch.setattr(lease, "renew", renew)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            kept = lease.Lease(fresh=is_fresh, faults=faults)
            began.append(trio.current_time())
            await nursery.start(kept.run)
            await trio.sleep(70)
            kept.stop()
            await trio.sleep(100)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert renewed == [20, 42, 43, 63]
    assert told == [[], [], [], [], ["lease"], []]
