"""Which machines there are, from what Consul answers. The clock is virtual, and only the keys are played."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import trio
import trio.testing

from appliance.drivers.consul.codec import TTL, machine_service
from appliance.drivers.consul.loss import AWAY, EPOCH, GRACE, LossDetector
from appliance.drivers.consul.machines import QUERY, Machines
from appliance.drivers.consul.staleness import Staleness
from appliance.errors import RetryError
from appliance.model.facts import Machine
from tests.drivers.fakekeys import FakeKeys

M1, M2, M3 = (Machine(node=f"m{number}", address=IPv4Address(f"10.0.0.{number}")) for number in (1, 2, 3))


def entry(machine, *, silent=False):
    """What Consul says of a machine in a health query."""
    arguments = machine_service(machine)
    status = "passing" if machine.healthy and not silent else "critical"
    return {
        "Node": {"Node": f"consul-{machine.node}", "Address": str(machine.address)},
        "Service": {"ID": arguments["service_id"], "Service": "meshbox", "Meta": arguments["meta"], "Port": 0}
        | {"Address": str(machine.address)},
        "Checks": [{"Status": status, "ServiceID": arguments["service_id"] if silent else ""}],
    }


class World:
    """The machines as m1 knows them."""

    def __init__(self):
        self.keys = FakeKeys()
        self.missed = self.changes = 0
        self.staleness = Staleness(trio.current_time, lambda: None)
        self.loss = LossDetector(self.keys, self.staleness, "m1", lost=lambda: None, other=self._other)
        self.machines = Machines(
            self.keys, self.staleness, self.loss, node="m1", missed=self._missed, changed=self._changed
        )

    def _missed(self):
        self.missed += 1

    def _changed(self):
        self.changes += 1

    def _other(self):
        self.machines.forget()

    async def told(self, *machines, **fields):
        """Consul tells of these machines."""
        self.keys.machines = [entry(machine, **fields) for machine in machines]
        await self.machines.reread()

    def known(self):
        """Nodes, and whether each is healthy."""
        return {machine.node: machine.healthy for machine in self.machines.judge()}


def run(script):
    """Run a script in a world of its own, on virtual time."""

    async def main():
        await script(World())

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_second_registration_takes_no_name(monkeypatch):
    """Not by coming first in the alphabet, nor while the first misses heartbeats; only once that one is silent."""
    m2 = replace(M2, presence_port=29999)
    rogue = {**entry(replace(M2, address=IPv4Address("10.0.0.66")))}
    rogue["Node"] = {"Node": "a", "Address": "10.0.0.66"}
    rogue["Service"]["CreateIndex"] = 90

    async def script(world):
        async def told(first):
            first["Service"]["Port"] = 29999
            world.keys.machines = [entry(M1), rogue, first]
            await world.machines.reread()

        def address():
            (found,) = (m.address for m in world.machines.judge() if m.node == "m2")
            return found

        answers = True
        monkeypatch.setattr(world.machines._liveness, "answers", lambda _: answers)
        await told(entry(m2))
        assert address() == M2.address
        assert any("two machines call themselves" in words for words in world.machines.complaints)
        await told(entry(m2, silent=True))
        assert address() == M2.address
        answers = False
        before = world.changes
        world.machines._heard()
        assert address() == IPv4Address("10.0.0.66"), "a machine that moved, and left this registration behind"
        assert world.changes == before + 1
        await told(entry(m2))
        assert address() == M2.address

    run(script)


def test_machines_come_and_go():
    """What Consul tells is known, each time it changes; one that was removed is healthy no more, but may still call."""

    async def script(world):
        assert not world.machines.answered.is_set()
        await world.told(M2, M1)
        assert world.machines.answered.is_set()
        assert world.known() == {"m1": True, "m2": True}
        assert [world.machines.is_serving(node) for node in ("m1", "m2", "m3")] == [False, True, False]
        await world.told(M1, M2, M3)
        await world.told(M1, replace(M3, healthy=False))
        assert world.known() == {"m1": True, "m2": False, "m3": False}
        assert not any(world.machines.is_serving(node) for node in ("m1", "m2", "m3"))
        assert (world.changes, world.missed) == (3, 0)

    run(script)


def test_before_the_first_answer():
    """What was known before the start counts; it is compared with Consul's epoch before it is compared with Consul."""

    async def script(world):
        world.machines.restore([M1, M2])
        assert world.known() == {"m1": True, "m2": True}
        world.loss.remember("former")
        world.keys.set(EPOCH, b"another")
        await world.told(M1, M3)
        assert world.known() == {"m1": True, "m3": True}

    run(script)


def test_an_answer_without_this_machine():
    """It is registered anew, and nobody is dropped: what does not show us may show less than there is."""

    async def script(world):
        await world.told(M1, M2)
        with pytest.raises(RetryError, match="does not show"):
            await world.told(M2)
        assert world.missed == 1
        assert world.known() == {"m1": True, "m2": True}
        with pytest.raises(RetryError, match="does not show"):
            await world.told()
        assert world.missed == 2
        assert world.known() == {"m1": True, "m2": True}

    run(script)


def test_what_was_lost_is_held():
    """After a loss machines are missing, and known until their time to come back is over."""

    async def script(world):
        await world.told(M1, M2)
        world.keys.keys.clear()
        await world.told(M1, M3)
        assert world.known() == {"m1": True, "m2": True, "m3": True}
        await trio.sleep(GRACE)
        await world.told(M1, M3)
        assert world.known() == {"m1": True, "m2": False, "m3": True}

    run(script)


@pytest.mark.parametrize(("seconds", "healthy"), [(AWAY + 0.1, True), (AWAY - 0.1, False)])
def test_missed_heartbeats_after_consul_was_away(seconds, healthy):
    """For one TTL nobody counts as dead; then all do. After a shorter while they count at once."""

    async def script(world):
        await world.told(M1, M2)
        world.staleness.failed(QUERY, "no leader")
        await trio.sleep(seconds)
        silent = [entry(M1), entry(M2, silent=True)]
        world.keys.machines = silent
        await world.machines.reread()
        assert world.known() == {"m1": True, "m2": healthy}
        world.staleness.over(QUERY)
        await trio.sleep(TTL)
        await world.machines.reread()
        assert world.known() == {"m1": True, "m2": False}

    run(script)


def test_complaints():
    """What cannot be read, and two machines of one name or address, are told until they are gone."""

    async def script(world):
        await world.told(M1, M2, replace(M3, address=M2.address), replace(M2, address=M3.address))
        assert [complaint.partition(" m2")[0][:30] for complaint in world.machines.complaints] == [
            'two machines call themselves "',
            "machines",
        ]
        await world.told(M1, M2, M3)
        assert world.machines.complaints == ()
        world.keys.machines[2]["Service"]["Meta"]["constraints"] = "{"
        await world.machines.reread()
        assert world.machines.complaints[0].startswith('machine "meshbox:m3" in Consul cannot be read: ')

    run(script)


def test_presence_port():
    """It is one of those given, which nobody has, and the former one where this machine had one."""

    async def script(world):
        assert world.machines.own_ports == frozenset()
        world.machines.restore([replace(M1, presence_port=29801)])
        port = world.machines.open_presence((29800, 29803), {29803})
        assert port in {29800, 29801, 29802}
        assert world.machines.own_ports == {port}

    run(script)
