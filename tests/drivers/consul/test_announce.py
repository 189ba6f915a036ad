"""What this machine tells its Consul agent, while that refuses, hangs or forgets. The clock is virtual."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
import trio
import trio.testing
from together import run_again, run_together

from appliance.drivers.consul.announce import COMPARE, HEARTBEAT, PATIENCE, SETTLE, Announcer
from appliance.drivers.consul.codec import TTL, destination_id, destination_service, machine_service
from appliance.drivers.consul.staleness import Staleness
from appliance.drivers.consul.transport import ConsulError
from appliance.errors import HostError
from appliance.model.facts import Machine
from appliance.model.names import Destination
from appliance.model.network import Registration

OWN = "meshbox:m1"


def serving(number: int, weight: int = 1) -> Registration:
    """That this machine serves one of many destinations."""
    destination = Destination.parse(f"web.s{number}:80")
    return Registration(destination=destination, proxy_port=20000 + number, weight=weight)


def id_of(number: int) -> str:
    """Its id."""
    return destination_id("m1", serving(number).destination)


class FakeAgent:
    """A Consul agent with its registrations; fails or hangs for the ids it is told to."""

    where = "Consul at nowhere"

    def __init__(self):
        self.broken: Exception | None = None
        self.stuck: set[str] = set()
        self.services: dict[str, dict] = {}
        self.refuses: set[str] = set()
        self.hangs = False
        self.delay = 0.0
        self.down = False
        self.calls: Counter[str] = Counter()
        self.beats: list[float] = []
        self.advertises = "10.0.0.1"
        self.passing = True

    async def _answer(self, call, service_id=""):
        self.calls[call] += 1
        if self.broken is not None:
            raise self.broken
        if {call, service_id} & self.stuck:
            await trio.sleep_forever()
        await trio.sleep(self.delay)
        if self.hangs:
            await trio.sleep(10)
            raise ConsulError("it did not answer")
        if self.down or service_id in self.refuses:
            raise ConsulError(f"refuses {service_id}", refused=True)

    async def address(self):
        await self._answer("address")
        return self.advertises

    async def own_services(self, _node):
        await self._answer("list")
        return {
            service_id: {
                "Service": a["name"],
                "Address": a["address"],
                "Port": a.get("port", 0),
                "Tags": a.get("tags", []),
                "Meta": a["meta"],
                "Weights": a.get("weights", {"Passing": 1}),
            }
            for service_id, a in self.services.items()
        }

    async def register(self, arguments):
        await self._answer("register", arguments["service_id"])
        self.services[arguments["service_id"]] = dict(arguments)

    async def is_passing(self, _check_id):
        await self._answer("checks")
        return self.passing

    async def deregister(self, service_id):
        await self._answer("deregister", service_id)
        self.services.pop(service_id, None)

    async def heartbeat(self, check_id):
        await self._answer("beat", "beat")
        if check_id not in self.services:
            raise ConsulError("unknown check")
        self.beats.append(trio.current_time())


class World:
    """An announcer over a fake agent."""

    def __init__(self):
        self.agent = FakeAgent()
        self.staleness = Staleness(trio.current_time, lambda: None)
        self.changes = 0
        self.announcer = self.made(address=IPv4Address("10.0.0.1"))

    def made(self, **fields):
        """Return an announcer."""
        return Announcer(self.agent, self.staleness, node="m1", meta=(), changed=self._changed, host="here", **fields)

    def _changed(self):
        self.changes += 1


def run(script):
    """Run a script beside a running announcer, on virtual time."""

    async def main():
        world = World()
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.announcer.parts)
            await script(world)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_one_that_is_refused_holds_up_no_other():
    """Heartbeats and all other registrations go on, nothing is held, and the one is told once until it is over."""

    async def script(world):
        world.agent.refuses.add(id_of(1))
        for number in range(4):
            await world.announcer.register(serving(number))
        await trio.sleep(4 * TTL)
        assert world.agent.services.keys() == {OWN, id_of(0), id_of(2), id_of(3)}
        assert world.agent.calls["beat"] >= 4 * TTL / HEARTBEAT - 1
        assert world.staleness.since is None
        assert world.announcer.problems.keys() == {id_of(1)}
        world.agent.refuses.clear()
        await trio.sleep(10)
        assert id_of(1) in world.agent.services
        assert world.announcer.problems == {}

    run(script)


def test_claims_are_announced_with_the_machine():
    """They stand in its registration soon after they change, and no heartbeat is missed for it."""

    async def script(world):
        world.announcer.claim(frozenset({"web/0/web"}))
        await trio.sleep(0.5)
        assert world.agent.services[OWN]["meta"]["claims-1"] == "web/0/web"
        world.announcer.claim(frozenset({"web/0/web"}))
        await trio.sleep(2 * TTL)
        assert world.agent.calls["register"] == 2
        world.announcer.claim(frozenset())
        await trio.sleep(0.5)
        assert "claims-1" not in world.agent.services[OWN]["meta"]
        beats = world.agent.beats
        assert max(b - a for a, b in pairwise(beats)) < TTL / 2

    run(script)


def test_presence_port_is_announced_with_the_machine():
    """And an agent that has another one is told again."""

    async def main():
        world = World()
        world.announcer.presence_port = 29999
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.announcer.parts)
            assert world.agent.services[OWN]["port"] == 29999
            world.agent.services[OWN]["port"] = 29998
            await trio.sleep(COMPARE + SETTLE)
            assert world.agent.services[OWN]["port"] == 29999
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_claims_before_the_first_registration():
    """What is claimed while Consul is away is announced with the first registration that it takes."""

    async def main():
        world = World()
        world.announcer.claim(frozenset({"web/0/web"}))
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.announcer.parts)
            assert world.agent.services[OWN]["meta"]["claims-1"] == "web/0/web"
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_heartbeat_does_not_wait_for_registrations():
    """Hundreds of slow registrations, as after a loss of data, let no heartbeat come too late."""

    async def script(world):
        for number in range(200):
            await world.announcer.register(serving(number))
        world.agent.delay = 1.0
        world.announcer.again()
        await trio.sleep(80)
        assert len(world.agent.services) == 201
        beats = world.agent.beats
        assert max(b - a for a, b in pairwise(beats)) < TTL / 2

    run(script)


def test_hung_consul_holds_up_nobody():
    """However many registrations change while Consul hangs, all waiting together is bounded; later it knows all."""

    async def script(world):
        for number in range(20):
            await world.announcer.register(serving(number))
        await trio.sleep(1)
        world.agent.hangs = True
        began = trio.current_time()
        for number in range(20):
            await world.announcer.register(serving(number + 100))
            await world.announcer.deregister(serving(number).destination)
        assert trio.current_time() - began < PATIENCE * 1.5
        world.agent.hangs = False
        await trio.sleep(60)
        assert world.agent.services.keys() == {OWN, *(id_of(number + 100) for number in range(20))}

    run(script)


def test_slow_consul_holds_up_nobody_for_long():
    """A second for each answer is not a second for each of twenty withdrawals."""

    async def script(world):
        for number in range(20):
            await world.announcer.register(serving(number))
        await trio.sleep(1)
        world.agent.delay = 1.0
        began = trio.current_time()
        for number in range(20):
            await world.announcer.deregister(serving(number).destination)
        assert trio.current_time() - began < PATIENCE * 1.5
        await trio.sleep(20)
        assert world.agent.services.keys() == {OWN}

    run(script)


def test_withdrawn_before_it_goes_on():
    """While Consul answers, who withdraws something goes on when it is withdrawn; also all at once, and for good."""

    async def script(world):
        for number in range(40):
            await world.announcer.register(serving(number))
        await trio.sleep(1)
        world.agent.delay = 0.1
        await world.announcer.deregister(serving(0).destination)
        assert id_of(0) not in world.agent.services
        await world.announcer.withdraw()
        assert world.agent.services.keys() == {OWN}
        await world.announcer.register(serving(1))
        await trio.sleep(COMPARE + SETTLE)
        assert world.agent.services.keys() == {OWN}

    run(script)


@pytest.mark.parametrize("trouble", ["hangs", "down"])
def test_withdrawing_is_bounded(trouble):
    """A stop does not wait for each of many withdrawals: draining begins before a supervisor loses patience."""

    async def script(world):
        for number in range(40):
            await world.announcer.register(serving(number))
        await trio.sleep(1)
        setattr(world.agent, trouble, True)
        with trio.fail_after(PATIENCE + 0.1):
            await world.announcer.withdraw()

    run(script)


def test_namesake_is_left_alone():
    """While another host's appliance of this name lives here, nothing of it is touched; when it dies, we follow."""

    async def script(world):
        await world.announcer.register(serving(1))
        await trio.sleep(SETTLE + 1)
        other = machine_service(Machine(node="m1", address=IPv4Address("10.0.0.1")), "there")
        theirs = {OWN: other, id_of(2): destination_service(world.announcer.machine, serving(2))}
        world.agent.services = dict(theirs)
        await trio.sleep(COMPARE * 2)
        assert world.agent.services == theirs
        assert 'another appliance calls itself "m1"' in world.staleness.why
        beats = len(world.agent.beats)
        await trio.sleep(TTL)
        assert len(world.agent.beats) == beats, "its check is not kept alive by us"
        world.agent.passing = False
        await trio.sleep(COMPARE)
        assert world.staleness.since is None
        assert world.agent.services.keys() == {OWN, id_of(1)}
        assert world.agent.services[OWN]["meta"]["host"] == "here"

    run(script)


def test_changes_while_consul_is_away():
    """What is registered and withdrawn meanwhile is caught up with, in whatever order it came."""

    async def script(world):
        await world.announcer.register(serving(1))
        await trio.sleep(1)
        world.agent.down = True
        await trio.sleep(HEARTBEAT * 2)
        assert world.staleness.since is not None
        await world.announcer.deregister(serving(1).destination)
        await world.announcer.register(serving(2))
        await world.announcer.register(serving(2, weight=7))
        await trio.sleep(100)
        assert world.announcer.problems == {}
        world.agent.down = False
        await trio.sleep(30)
        assert world.staleness.since is None
        assert world.agent.services.keys() == {OWN, id_of(2)}
        assert world.agent.services[id_of(2)]["weights"]["Passing"] == 7

    run(script)


def test_agent_that_forgot_everything():
    """An agent that was restarted without its data is told all of it at the next heartbeat."""

    async def script(world):
        await world.announcer.register(serving(1))
        await trio.sleep(1)
        world.agent.services.clear()
        await trio.sleep(HEARTBEAT + 3)
        assert world.agent.services.keys() == {OWN, id_of(1)}

    run(script)


def test_dead_machines_are_forgotten_by_consul():
    """Both kinds of registrations say after how long Consul itself removes what stays critical."""

    async def script(world):
        await world.announcer.register(serving(1))
        await trio.sleep(1)
        for service_id in (OWN, id_of(1)):
            assert world.agent.services[service_id]["check"]["DeregisterCriticalServiceAfter"] == "72h"

    run(script)


def test_agent_without_an_ipv4_address():
    """At the start it is one line that says what to set; later it is a fault like any other."""

    async def main():
        world = World()
        world.agent.advertises = "fd00::1"
        complaint = pytest.RaisesExc(HostError, match=r"agent advertises fd00::1.*advertise_addr")
        with pytest.RaisesGroup(complaint, flatten_subgroups=True):
            await run_together(world.made(address=None).parts)
        world.agent.down = True
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.made(address=None).parts)
            world.agent.down = False
            await trio.sleep(60)
            assert "advertise_addr" in world.staleness.why
            world.agent.advertises = "10.0.0.1"
            await trio.sleep(10)
            assert world.staleness.since is None
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_error_that_nobody_has_foreseen_is_tried_again():
    """Without heartbeats all other machines would take this one for dead."""

    async def script(world):
        await world.announcer.register(serving(1))
        await trio.sleep(SETTLE)
        world.agent.broken = KeyError("what")
        await trio.sleep(TTL)
        assert world.staleness.why == "KeyError: 'what'"
        world.agent.broken = None
        await world.announcer.register(serving(2))
        await trio.sleep(2 * SETTLE)
        assert world.staleness.since is None
        assert world.agent.services.keys() == {OWN, id_of(1), id_of(2)}

    run(script)


def test_a_heartbeat_that_never_returns_is_given_up_before_the_ttl_is_over():
    """The next one is made; so other machines do not notice."""

    async def script(world):
        await trio.sleep(SETTLE)
        world.agent.stuck.add("beat")
        await trio.sleep(HEARTBEAT + 0.1)
        world.agent.stuck.clear()
        await trio.sleep(TTL)
        beats = world.agent.beats
        assert max(b - a for a, b in pairwise(beats)) < TTL - 1

    run(script)


def test_a_registration_cut_short_is_sent_again():
    """As when the part that sends them is started again; what is announced stays announced."""

    async def main():
        world, scopes = World(), {}
        async with trio.open_nursery() as nursery:
            for part in world.announcer.parts:
                await nursery.start(run_again, part, scopes)
            world.agent.stuck.add(id_of(1))
            await world.announcer.register(serving(1))
            await world.announcer.register(serving(2))
            await trio.sleep(1)
            for scope in list(scopes.values()):
                scope.cancel()
            await trio.sleep(1)
            assert world.agent.services.keys() == {OWN, id_of(2)}
            world.agent.stuck.clear()
            scopes["consul registrations"].cancel()
            await trio.sleep(1)
            assert world.agent.services.keys() == {OWN, id_of(1), id_of(2)}
            assert world.agent.calls["deregister"] == 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
