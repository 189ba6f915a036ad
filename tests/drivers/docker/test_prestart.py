"""Who is told of a new namespace, and what. A namespace is a link to the test's own, which is no container's."""

from __future__ import annotations

from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import pytest
import trio
import trio.testing
from fakedocker import cid, until

from appliance.drivers.docker.prestart import PrestartWatch, StartingContainer
from appliance.drivers.netns import identity as namespaces
from appliance.errors import RetryError

ADDRESS = IPv4Address("172.17.0.2")


class Parent:
    """Knows one container on its way, and records what it is told."""

    def __init__(self) -> None:
        self.connecting: str | None = cid(2)
        self.mine = True
        self.fails = 0
        self.asked: list[str] = []
        self.seen_before_start: list[StartingContainer] = []
        self.gone: list[str] = []

    def only_connecting(self) -> str | None:
        """Tell of the container on its way."""
        return self.connecting

    async def concerns(self, container_id: str) -> bool:
        """Tell whether it is a workload."""
        self.asked.append(container_id)
        if self.fails:
            self.fails -= 1
            raise RetryError("Docker is away")
        return self.mine

    async def reserved(self, container_id: str) -> tuple[IPv4Address, ...]:
        """Tell its address."""
        return (ADDRESS,)

    async def born(self, newborn: StartingContainer) -> bool:
        """Record it."""
        self.seen_before_start.append(newborn)
        return True

    def awaits(self, container_id: str) -> bool:
        """Want no more."""
        return False

    def vanished(self, path: str) -> None:
        """Record it."""
        self.gone.append(path)


@pytest.fixture
def directory(tmp_path):
    """Docker's netns directory."""
    made = tmp_path / "netns"
    made.mkdir()
    return made


@asynccontextmanager
async def watched(directory, parent):
    """Watch the directory."""
    async with trio.open_nursery() as nursery:
        await nursery.start(PrestartWatch(str(directory), parent).run)
        yield
        nursery.cancel_scope.cancel()


def namespace(directory, name: str) -> str:
    """Make a file that leads to a namespace."""
    (directory / name).symlink_to("/proc/self/ns/net")
    return str(directory / name)


def test_namespace_is_told_with_its_addresses(directory):
    """A new namespace is told of with container, identity and addresses; and so is its end."""
    parent = Parent()

    async def main():
        async with watched(directory, parent):
            path = namespace(directory, "one")
            await until(lambda: parent.seen_before_start)
            (newborn,) = parent.seen_before_start
            assert (newborn.container_id, newborn.addresses) == (cid(2), (ADDRESS,))
            assert newborn.netns.id == namespaces.identify(path)
            (directory / "one").unlink()
            await until(lambda: parent.gone == [path])

    trio.run(main)


def test_nothing_is_guessed(directory, monkeypatch):
    """Old namespaces are nobody's guess, nor is a new one while the host's processes can be seen."""
    parent = Parent()
    namespace(directory, "old")
    owners = {str(directory / "known"): cid(3)}

    async def find_container(path):
        await trio.lowlevel.checkpoint()
        return owners.get(path)

    monkeypatch.setattr(namespaces, "find_container", find_container)

    async def main():
        async with watched(directory, parent):
            namespace(directory, "known")
            await until(lambda: parent.seen_before_start)
            namespace(directory, "build")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert parent.asked == [cid(3)]

    trio.run(main)


def test_others_are_left_alone(directory):
    """A container that is no workload is not told of."""
    parent = Parent()
    parent.mine = False

    async def main():
        async with watched(directory, parent):
            namespace(directory, "one")
            await until(lambda: parent.asked)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not parent.seen_before_start

    trio.run(main)


def test_a_fault_stops_nobody_else(directory):
    """When Docker cannot be asked about one namespace, the next one is told of all the same."""
    parent = Parent()
    parent.fails = 1

    async def main():
        async with watched(directory, parent):
            namespace(directory, "one")
            await until(lambda: not parent.fails)
            namespace(directory, "two")
            await until(lambda: parent.seen_before_start)

    trio.run(main)


def test_directory_that_comes_later(directory):
    """Docker may make its directory after the appliance has started."""
    parent = Parent()

    async def main():
        async with watched(directory / "later", parent):
            (directory / "later").mkdir()
            namespace(directory / "later", "one")
            await until(lambda: parent.seen_before_start)

    trio.run(main)
