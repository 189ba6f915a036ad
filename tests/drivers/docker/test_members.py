"""Whose ports and addresses are whose; what the kernel says of ports is given by the test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio
import trio.testing
from fakedocker import BRIDGE, cid, until

from appliance.drivers.docker import members
from appliance.drivers.docker.members import MemberStore
from appliance.drivers.docker.types import Event, Joined
from appliance.drivers.netns import identity, links
from appliance.errors import RetryError
from appliance.model.facts import BridgeMember, DockerName, DockerNetwork
from appliance.model.network import Netns, NetnsId

LAN = DockerNetwork(name="lan", driver="macvlan")
OTHER = DockerNetwork(name="other", driver="bridge")
NETWORKS = {"bridge": BRIDGE, "lan": LAN, "other": OTHER}
MAC, FOUR, SIX = 0x0242AC110002, IPv4Address("172.17.0.2"), IPv6Address("fd00::2")
JOINED = Joined(network="bridge", address=FOUR, address6=SIX, mac=MAC)
SECOND = Joined(network="other", address=IPv4Address("10.9.0.2"), mac=MAC + 1)


class World:
    """A store, and the ports that the kernel has for this namespace."""

    def __init__(self) -> None:
        here = identity.identify(identity.HOST)
        assert here is not None
        self.netns = Netns(id=here, path=identity.HOST)
        self.changes = 0
        self.store = MemberStore(changed=self._changed, patience=5.0)
        self.ports: frozenset[str] | RetryError = frozenset({"veth2"})
        self.searches = 0

    def _changed(self) -> None:
        self.changes += 1

    async def wait_ports(self, path: str, number: int, *, timeout: float) -> frozenset[str]:  # noqa: ASYNC109 — as the real one
        """Answer for the kernel."""
        await trio.lowlevel.checkpoint()
        assert (path, timeout) == (identity.HOST, 5.0)
        self.searches += 1
        if isinstance(self.ports, RetryError):
            raise self.ports
        return self.ports

    def put(self, *joined: Joined, settled: bool = True, since: float = 100.0) -> None:
        """Let Docker show container 2."""
        self.store.put(cid(2), self.netns, joined, NETWORKS, since=since, settled=settled)

    @asynccontextmanager
    async def running(self):
        """Let it look for ports."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.store.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def world(monkeypatch):
    """A world whose ports are there."""
    made = World()
    monkeypatch.setattr(links, "wait_ports", made.wait_ports)
    monkeypatch.setattr(members, "_are_there", lambda ports: made.ports == frozenset(ports))
    return made


def play(world, scene) -> None:
    """Run a scene."""

    async def main() -> None:
        async with world.running():
            await scene()

    trio.run(main)


async def quiet() -> None:
    """Wait until nothing is under way."""
    await trio.testing.wait_all_tasks_blocked(0.02)


def test_a_container_counts_with_its_port_and_all_that_docker_gave_it(world):
    """Once; what Docker shows again changes nothing, and nobody looks again."""

    async def scene():
        world.put(JOINED, Joined(network="lan", address=IPv4Address("10.0.0.9")))
        await until(lambda: world.store.members)
        assert world.store.members == (
            BridgeMember(
                id=cid(2), ports=frozenset({"veth2"}), macs=frozenset({MAC}), addresses=frozenset({FOUR, SIX})
            ),
        )
        world.put(replace(JOINED, gateway=IPv4Address("172.17.0.1")))
        await quiet()
        assert (world.changes, world.searches) == (1, 1)
        assert world.store.is_settled(cid(2))
        assert not world.store.is_settled(cid(3))

    play(world, scene)


def test_without_all_its_ports_it_claims_nothing(world):
    """An address whose port is not known would be refused everywhere; nobody keeps looking."""

    async def scene():
        world.put(JOINED, SECOND)
        await quiet()
        assert world.store.members == ()
        world.ports = RetryError("no such namespace")
        world.store.rejoin(cid(2))
        world.put(JOINED, SECOND)
        await quiet()
        assert (world.store.members, world.searches, world.changes) == ((), 2, 0)

    play(world, scene)


def test_a_network_that_comes_or_goes_is_looked_at_again(world):
    """Also where the addresses are the same as before: the port is another. The former claim stands until then."""

    async def scene():
        world.put(JOINED)
        await until(lambda: world.store.members)
        world.ports = frozenset({"veth2", "veth3"})
        world.put(JOINED, SECOND)
        assert world.store.members[0].ports == {"veth2"}
        await until(lambda: world.store.members[0].ports == world.ports)
        world.store.rejoin(cid(2))
        world.ports = frozenset({"veth4", "veth3"})
        world.put(JOINED, SECOND)
        await until(lambda: world.store.members[0].ports == world.ports)
        world.put()
        assert world.store.members == ()

    play(world, scene)


def test_its_end_ends_its_claims(world):
    """The event of a former run, which comes late, does not."""

    async def scene():
        world.put(JOINED, settled=False)
        await until(lambda: world.store.members)
        for action, time, left in (("die", 99.0, 1), ("start", 150.0, 1), ("die", 150.0, 0)):
            world.store.take(action, Event(kind="container", action=action, id=cid(2), time=time))
            assert len(world.store.members) == left

    play(world, scene)


def test_a_namespace_that_is_gone_claims_nothing(world):
    """Its ports are another container's by now."""

    async def scene():
        world.netns = Netns(id=NetnsId(device=1, inode=1), path=identity.HOST)
        world.put(JOINED)
        await quiet()
        assert world.store.members == ()

    play(world, scene)


def test_what_the_networks_show_is_compared(world):
    """Those that are known as shown are left alone; one that is not shown any more is forgotten, if it was known."""

    async def scene():
        world.put(JOINED)
        await until(lambda: world.store.members)
        shown = [("bridge", {cid(2): JOINED, cid(3): JOINED, "gateway_1a2b": JOINED, cid(4): Joined(network="bridge")})]
        assert world.store.differing(shown, world.store.known()) == {cid(3)}
        other = [("bridge", {cid(2): Joined(network="bridge", address=FOUR)})]
        assert world.store.differing(other, world.store.known()) == {cid(2)}
        assert world.store.differing([], frozenset()) == frozenset()
        assert world.store.members
        world.ports = frozenset({"veth9"})
        assert world.store.differing(shown[:1], world.store.known()) == {cid(2), cid(3)}
        assert world.store.differing([], world.store.known()) == frozenset()
        assert world.store.members == ()

    play(world, scene)


def test_what_was_noted_while_nobody_looked_is_looked_for(world):
    """As where the task that looks is started again."""
    world.put(JOINED)
    assert world.searches == 0

    async def scene():
        await until(lambda: world.store.members)
        assert world.searches == 1

    play(world, scene)


def test_what_docker_calls_it(world):
    """Inspect says it, and what says nothing of names leaves them as they are; other names are a change."""

    async def scene():
        world.put(JOINED, settled=False)
        await until(lambda: world.store.members)
        assert world.store.members[0].called == frozenset()
        world.put(replace(JOINED, names=("Web", "API.shop")))
        called = {DockerName("bridge", "web", "Web"), DockerName("bridge", "api.shop", "Web")}
        assert world.store.members[0].called == called
        assert world.searches == 1
        world.put(JOINED, settled=False)
        assert world.store.members[0].called == called
        changes = world.changes
        world.put(replace(JOINED, names=("web",)))
        assert world.store.members[0].called == {DockerName("bridge", "web", "web")}
        assert world.changes == changes + 1

    play(world, scene)
