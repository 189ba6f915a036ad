"""Machines that vanished, and until when they may call. The clock is virtual."""

from __future__ import annotations

from ipaddress import IPv4Address

import trio
import trio.testing

from appliance.drivers.consul.deregistered import MAY_CALL, Deregistered
from appliance.model.facts import Machine


def machine(number, *, node=""):
    """A machine that is registered."""
    return Machine(node=node or f"m{number}", address=IPv4Address(f"10.0.0.{number}"))


M1, M2, M3 = ({f"m{number}": machine(number)} for number in (1, 2, 3))


def found(deregistered):
    """Machines that may still call, and that nothing else is done with them."""
    assert not any(m.healthy for m in deregistered.machines)
    return {m.node: str(m.address) for m in deregistered.machines}


def test_for_how_long():
    """Each has its whole time, and then it is told that it is over."""
    over = []

    async def script():
        deregistered = Deregistered(lambda: over.append(trio.current_time() - began))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deregistered.forget)
            await trio.sleep(MAY_CALL / 2)
            deregistered.note(M1 | M2 | M3, M1 | M2)
            await trio.sleep(MAY_CALL * 3 / 4)
            deregistered.note(M1 | M2, M1)
            assert found(deregistered) == {"m2": "10.0.0.2", "m3": "10.0.0.3"}
            await trio.sleep(MAY_CALL / 2)
            assert found(deregistered) == {"m2": "10.0.0.2"}
            await trio.sleep(MAY_CALL)
            assert found(deregistered) == {}
            nursery.cancel_scope.cancel()

    trio.run(script, clock=trio.testing.MockClock(autojump_threshold=0))
    assert over == [MAY_CALL * 1.5, MAY_CALL * 2.25]


def test_who_is_registered_again():
    """Whose name or address is registered again, by whomever, is not one that vanished any more."""

    async def script():
        deregistered = Deregistered(lambda: None)
        deregistered.note(M1 | M2 | M3, M1)
        deregistered.note(M1, M1 | M2)
        assert found(deregistered) == {"m3": "10.0.0.3"}
        deregistered.note(M1 | M2, M1 | M2 | {"m4": machine(3, node="m4")})
        assert found(deregistered) == {}
        deregistered.note(M1 | M2, M1 | {"m5": machine(2, node="m5")})
        assert found(deregistered) == {}
        deregistered.note(M1 | M2, {"m2": machine(9, node="m2")})
        assert found(deregistered) == {"m1": "10.0.0.1"}
        deregistered.clear()
        assert found(deregistered) == {}

    trio.run(script)
