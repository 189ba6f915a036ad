"""What is published of a new namespace. A namespace is a link to the test's own, which is no container's."""

from __future__ import annotations

from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

import pytest
import trio
import trio.testing
from fakedocker import BRIDGE, FakeDocker, cid, until

from appliance.drivers.docker.images import ImageLabels
from appliance.drivers.docker.prestart import PrestartWatch
from appliance.drivers.docker.types import Event
from appliance.drivers.docker.workloads import WorkloadStore
from appliance.drivers.netns import addresses, identity, owner
from appliance.drivers.netns.owner import Owner, Process
from appliance.faults import Faults
from appliance.model.facts import DockerNetwork, RunState

LABELS = {"meshbox.service": "flask", "meshbox.container": "web"}
ADDRESS = IPv4Address("172.17.0.2")
NEW = DockerNetwork(
    name="new", driver="bridge", subnets=(IPv4Network("10.9.0.0/24"),), gateways=(IPv4Address("10.9.0.1"),)
)


class FakeMembers:
    """Notes what is put, but for the time."""

    def __init__(self) -> None:
        self.put_there = []

    def put(self, container_id, netns, joined, networks, *, since, settled=False) -> None:
        """Take what Docker gave a starting container."""
        assert since > 0
        assert not settled
        assert {one.network for one in joined} == networks.keys()
        self.put_there.append((container_id, netns.path, tuple(one.address for one in joined)))


class World:
    """A store and a fake Docker in which the container c2 is on its way: created, connected, its address reserved."""

    def __init__(self, directory) -> None:
        self.directory = directory / "netns"
        self.docker = FakeDocker()
        self.inspected: list[str] = []
        self.listings = 0
        self.store = WorkloadStore(
            netns_dir=self.directory, changed=lambda *, urgent: None, fresh_netns=lambda _: None, faults=Faults()
        )
        self.members = FakeMembers()
        self.store.networks = {"bridge": BRIDGE}
        self.create(2)
        self.docker.reserved["bridge"] = {cid(2): ADDRESS}
        self.store.begin_connecting(cid(2), "bridge")

    def create(self, number: int, labels=LABELS) -> None:
        """Create a container in Docker, of which no event has told yet."""
        self.docker.add(number, labels, state=RunState.CREATED, started_at=0.0, joined=(), sandbox_key="")

    async def list_networks(self) -> None:
        """Bring the store's networks up to date."""
        self.listings += 1
        self.store.networks = {n.name: n for n in await self.docker.networks()}

    @asynccontextmanager
    async def watched(self):
        """Watch the directory."""
        watch = PrestartWatch(
            str(self.directory),
            self.docker,
            self.store,
            self.members,
            listed=ImageLabels(self.docker).listed,
            list_networks=self.list_networks,
            inspect=self.inspected.append,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.run)
            yield
            nursery.cancel_scope.cancel()

    def namespace(self, name: str) -> str:
        """Make a file that leads to a namespace."""
        (self.directory / name).symlink_to("/proc/self/ns/net")
        return str(self.directory / name)

    @property
    def published(self) -> list:
        """The workloads that have a namespace."""
        return [workload for workload in self.store.by_id.values() if workload.netns is not None]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A world with Docker's netns directory. Namespaces show no address: they are the test's own."""

    async def no_address(_path, **_limits):
        await trio.sleep_forever()

    monkeypatch.setattr(addresses, "wait", no_address)
    made = World(tmp_path)
    made.directory.mkdir()
    return made


def test_namespace_is_published_with_its_addresses(world):
    """A new namespace is published with container, identity and addresses; at its end the container is inspected."""

    async def main():
        async with world.watched():
            path = world.namespace("one")
            await until(lambda: world.published and world.published[0].addresses)
            (workload,) = world.published
            assert (workload.id, workload.addresses) == (cid(2), (ADDRESS,))
            assert (workload.netns.id, workload.netns.path) == (identity.identify(path), path)
            assert world.listings == 0
            assert world.inspected == []
            assert world.members.put_there == [(cid(2), path, (ADDRESS,))]
            (world.directory / "one").unlink()
            await until(lambda: world.inspected == [cid(2)])
            assert world.published == []

    trio.run(main)


def test_nothing_is_guessed(world, monkeypatch):
    """An old namespace is not guessed to be anybody's, nor is a new one while the host's processes can be seen."""
    world.namespace("old")
    world.create(3)
    world.docker.reserved["bridge"][cid(3)] = IPv4Address("172.17.0.3")
    owners = {str(world.directory / "known"): cid(3)}

    async def find_owner(path):
        await trio.lowlevel.checkpoint()
        return Owner(owners[path], Process(1, 1)) if path in owners else None

    monkeypatch.setattr(owner, "find_owner", find_owner)

    async def main():
        async with world.watched():
            world.namespace("known")
            await until(lambda: world.published)
            assert len(world.members.put_there) == 1
            world.namespace("build")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert [workload.id for workload in world.published] == [cid(3)]
            assert not any(cid(2) in call for call in world.docker.calls)

    trio.run(main)


@pytest.mark.parametrize(("labels", "image"), [({}, {}), (LABELS | {"meshbox.ports": "many"}, {}), (LABELS, LABELS)])
def test_others_are_left_alone(world, labels, image):
    """Neither a container that is no workload nor one that has a problem or its name from its image is published.

    Their addresses are claimed.
    """
    world.create(2, labels)
    world.docker.image_says["sha256:web"] = image

    async def main():
        async with world.watched():
            path = world.namespace("one")
            await until(lambda: world.members.put_there)
            await trio.testing.wait_all_tasks_blocked(0.05)
            asked = [f"listed {cid(2)}", *["image_labels sha256:web"][: len(labels)], "members bridge"]
            assert world.docker.calls == asked
            assert world.members.put_there == [(cid(2), path, (ADDRESS,))]
            assert world.published == []

    trio.run(main)


def test_a_fault_stops_nobody_else(world):
    """When Docker cannot be asked about one namespace, the next one is published."""
    world.docker.refuse["listed"] = "internal error"

    async def main():
        async with world.watched():
            world.namespace("one")
            await until(lambda: world.docker.calls == [f"listed {cid(2)}"])
            await trio.testing.wait_all_tasks_blocked()
            assert world.published == []
            del world.docker.refuse["listed"]
            world.namespace("two")
            await until(lambda: world.published)

    trio.run(main)


def test_directory_that_comes_later(tmp_path):
    """Docker may make its directory after the appliance has started."""
    world = World(tmp_path)

    async def main():
        async with world.watched():
            world.directory.mkdir()
            world.namespace("one")
            await until(lambda: world.published)

    trio.run(main)


def test_a_network_as_new_as_its_container_is_listed_first(world):
    """Once, when an address lies in no network that is known."""
    world.docker.nets["new"] = NEW
    world.docker.reserved = {"new": {cid(2): IPv4Address("10.9.0.2")}}
    world.store.end_connecting(cid(2))
    world.store.begin_connecting(cid(2), "gone")
    world.store.begin_connecting(cid(2), "new")

    async def main():
        async with world.watched():
            world.namespace("one")
            await until(lambda: world.published and world.published[0].addresses)
            assert [a.network for a in world.published[0].attachments] == ["new"]
            assert world.listings == 1

    trio.run(main)


def test_addresses_that_no_network_tells_are_read_inside_until_the_start(world, monkeypatch):
    """The first one is published at once, those of further networks as they come; after the start nobody looks."""
    world.docker.nets["new"] = NEW
    world.docker.reserved.clear()
    world.store.begin_connecting(cid(2), "new")
    inside = [ADDRESS]
    reads = 0

    async def wait(path, **limits):
        await trio.lowlevel.checkpoint()
        assert (path, limits) == (str(world.directory / "one"), {"timeout": 10.0})
        return tuple(inside)

    async def read(path):
        nonlocal reads
        await trio.lowlevel.checkpoint()
        assert path == str(world.directory / "one")
        reads += 1
        return tuple(inside)

    monkeypatch.setattr(addresses, "wait", wait)
    monkeypatch.setattr(addresses, "read", read)

    async def main():
        async with world.watched():
            world.namespace("one")
            await until(lambda: world.published and world.published[0].addresses == (ADDRESS,))
            inside.append(IPv4Address("10.9.0.2"))
            await until(lambda: len(world.published[0].addresses) == 2)
            assert world.listings == 1
            world.store.died(Event(kind="container", action="die", id=cid(2), time=9e9))
            await trio.testing.wait_all_tasks_blocked(0.05)
            before = reads
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert reads == before

    trio.run(main)


def test_nothing_waits_for_docker_to_describe_a_network(world, monkeypatch):
    """A container is published without its address at once, with the one inside as soon as that is there.

    What Docker says in the end is taken too, but does not bring back a container that has ended meanwhile.
    """
    world.docker.members_gate = described = trio.Event()
    there = trio.Event()

    async def wait(_path, **_limits):
        await there.wait()
        return (ADDRESS,)

    monkeypatch.setattr(addresses, "wait", wait)

    async def main():
        async with world.watched():
            path = world.namespace("one")
            await until(lambda: world.published)
            (place,) = world.published[0].attachments
            assert (place.network, place.address, place.gateway) == ("bridge", None, BRIDGE.gateways[0])
            there.set()
            await until(lambda: world.published[0].addresses == (ADDRESS,))
            assert world.members.put_there == []
            world.store.died(Event(kind="container", action="die", id=cid(2), time=9e9))
            assert world.published == []
            described.set()
            await until(lambda: world.members.put_there == [(cid(2), path, (ADDRESS,))])
            await trio.testing.wait_all_tasks_blocked()
            assert world.published == []

    trio.run(main)
