"""A host's bridges are read at each notice, and now and then; tests/system reads real ones."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from appliance.drivers.host import bridges
from appliance.drivers.host.bridges import HostBridges
from appliance.faults import Faults
from appliance.model.facts import HostBridge

ONE, TWO = HostBridge(name="br-1", mac=1), HostBridge(name="br-2", mac=2)
EVERY = 30.0


def test_changes_ring_and_failures_keep_what_was_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bell rings for a change only; a failure of any kind is one fault, and is over with the next success."""
    answers = [(ONE,), (ONE,), OSError(24, "Too many open files"), ValueError("odd"), (ONE, TWO)]
    seen, rings, faults = [], [], Faults()

    def read():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(bridges.links, "host_bridges", read)

    async def main() -> None:
        host = HostBridges(bell=lambda: rings.append(1), faults=faults, every=EVERY)
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await trio.sleep(EVERY / 2)
            for _ in range(5):
                seen.append((host.now, len(rings), list(faults.list())))
                await trio.sleep(EVERY)
                if len(answers) == 0:
                    break
            seen.append((host.now, len(rings), list(faults.list())))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert seen == [
        ((ONE,), 1, []),
        ((ONE,), 1, []),
        ((ONE,), 1, ["host bridges"]),
        ((ONE,), 1, ["host bridges"]),
        ((ONE, TWO), 2, []),
    ]
