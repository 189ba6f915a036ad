"""A host's addresses are read now and then; what cannot be read stays as it was."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
import trio
import trio.testing

from appliance.drivers.host import addresses
from appliance.drivers.host.addresses import HostAddresses
from appliance.drivers.netns import identity
from appliance.errors import RetryError
from appliance.faults import Faults

ONE, TWO = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
EVERY = 30.0


def test_changes_ring_and_failures_keep_what_was_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bell rings for a change only; a failure is one fault, and is over with the next success."""
    answers = [(ONE,), (ONE,), RetryError("no netlink socket"), (ONE, TWO), ()]
    seen = []
    rings = []
    faults = Faults()

    async def read(path: str) -> tuple[IPv4Address, ...]:
        assert path == identity.HOST
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(addresses.addresses, "read", read)

    async def main() -> None:
        host = HostAddresses(bell=lambda: rings.append(trio.current_time()), faults=faults, every=EVERY)
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await trio.sleep(EVERY / 2)
            for _ in range(4):
                seen.append((host.now, len(rings), list(faults.list())))
                await trio.sleep(EVERY)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert seen == [
        ({ONE}, 1, []),
        ({ONE}, 1, []),
        ({ONE}, 1, ["host addresses"]),
        ({ONE, TWO}, 2, []),
    ]


def test_the_real_ones_are_read() -> None:
    """Started means that they are known, without loopback ones."""

    async def main() -> frozenset[IPv4Address]:
        host = HostAddresses(bell=lambda: None, faults=Faults(), every=EVERY)
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            nursery.cancel_scope.cancel()
        return host.now

    assert not any(address.is_loopback for address in trio.run(main))
