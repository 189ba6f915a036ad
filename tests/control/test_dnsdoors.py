"""Doors for DNS: opened once, moved with their workload, let go with the namespace. Real ones: tests/system."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address

import pytest

from appliance.control.dnsdoors import DnsDoors
from appliance.drivers.netns import identity, netlink
from appliance.errors import RetryError
from appliance.model.network import Door, Netns, NetnsId

NETNS = Netns(id=NetnsId(device=4, inode=3), path="/netns/3")


class World:
    """A data plane that notes what it is told, and a namespace that is there or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[object, ...]] = []
        self.there = True
        self.error: OSError | None = None
        self.doors = DnsDoors(self)  # type: ignore[arg-type]
        monkeypatch.setattr(identity, "identify", lambda _: NETNS.id if self.there else None)
        monkeypatch.setattr(netlink, "entered", self._entered)

    def _entered(self, _path: str, _make: object) -> tuple[str, ...]:
        if self.error is not None:
            raise self.error
        return ("tcp", "udp")

    def open_dns_door(self, door: Door, sockets: tuple[str, ...]) -> None:
        """Note it."""
        self.told.append((str(door.caller), *sockets))

    def close_dns_door(self, netns: NetnsId) -> None:
        """Note it."""
        self.told.append(("close", netns))

    def open(self, caller: str = "172.18.0.3") -> None:
        """Open the one door."""
        address = IPv4Address(caller)
        self.doors.open(NETNS, Door(netns=NETNS.id, caller=address, dialler=address))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """No door is open."""
    return World(monkeypatch)


def test_its_sockets_stay_when_the_workload_moves(world: World) -> None:
    """Questions on their way are answered: with other networks a workload has another address."""
    world.open()
    world.open("172.19.0.3")
    assert world.told == [("172.18.0.3", "tcp", "udp"), ("172.19.0.3",)]
    assert NETNS.id in world.doors


def test_it_closes_once(world: World) -> None:
    """And only if it is open."""
    world.doors.close(NETNS)
    world.open()
    world.doors.close(NETNS)
    world.doors.close(NETNS)
    assert world.told[1:] == [("close", NETNS.id)]
    assert NETNS.id not in world.doors


def test_a_namespace_that_is_gone_is_let_go(world: World) -> None:
    """A socket would keep it alive."""
    world.open()
    world.doors.let_go()
    assert NETNS.id in world.doors
    world.there = False
    world.doors.let_go()
    assert NETNS.id not in world.doors


def test_a_port_that_is_taken_is_said(world: World) -> None:
    """It is tried again, and the data plane is told nothing."""
    world.error = OSError(errno.EADDRINUSE, "Address already in use")
    with pytest.raises(RetryError, match="port 6: Address already in use; the host does it"):
        world.open()
    assert world.told == []
