"""One door: what is done in which order, and what a failure leaves. Real namespaces: tests/system/test_doors.py."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
import trio
import trio.lowlevel

from appliance.control import doors as module
from appliance.control.doors import Doors
from appliance.drivers.netns import addresses, identity, netlink, routes
from appliance.errors import NotYetError, RetryError
from appliance.model.network import Netns, NetnsId, WorkloadDoor

VIPS = IPv4Network("240.0.0.0/4")


class Closable:
    """A socket or file."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class World:
    """A data plane, and what drivers/netns does; `calls` has what is done. `fail` is by name of the function."""

    accepting = 2

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.fail: dict[str, Exception] = {}
        self.there = True
        self.addresses = (IPv4Address("172.18.0.3"),)
        self.made: list[Closable] = []
        self.doors = Doors(self)
        self.netns = Netns(id=NetnsId(device=4, inode=3), path="/netns/3")
        for name in ("add_local_route", "drop_local_route"):
            monkeypatch.setattr(routes, name, self._call(name))
        monkeypatch.setattr(addresses, "wait", self._call("wait"))
        monkeypatch.setattr(identity, "identify", lambda _: self.netns.id if self.there else None)
        monkeypatch.setattr(netlink, "entered", self._entered)
        monkeypatch.setattr(module, "LOOK", 0.0)

    def _call(self, name: str):
        async def call(path, *args, timeout=1.0):  # noqa: ASYNC109 — as the real one
            await trio.lowlevel.checkpoint()
            if name == "wait":
                assert timeout == 0, "a step does not wait"
                return tuple(a for a in self.addresses if a == args[0])
            self.calls.append((name, *(str(arg) for arg in args if arg is not None)))
            if name in self.fail:
                raise self.fail[name]
            return None

        return call

    def _entered(self, path, make):
        self.calls.append(("listen",))
        if "listen" in self.fail:
            raise self.fail["listen"]
        self.made = [Closable() for _ in range(4)]
        return tuple(self.made[:2]), self.made[2], self.made[3]

    def open_door(self, door, tcp, udp, netns) -> None:
        assert len(tcp) == self.accepting
        self.calls.append(("open", str(door.caller)))

    def move_door(self, door) -> None:
        self.calls.append(("move", str(door.caller)))

    def close_door(self, netns) -> None:
        self.calls.append(("close", str(netns)))

    def door(self, **fields) -> WorkloadDoor:
        """Return what is wanted."""
        return WorkloadDoor(
            netns=fields.pop("netns", self.netns),
            address=IPv4Address(fields.pop("address", "172.18.0.3")),
            vip_range=VIPS,
            **fields,
        )

    def does(self, function, *args) -> list[tuple[object, ...]]:
        """Return what a function of the doors does."""
        self.calls.clear()
        trio.run(function, *args)
        return list(self.calls)


@pytest.fixture
def world(monkeypatch):
    """A host without doors."""
    return World(monkeypatch)


ADD_ROUTE = ("add_local_route", "240.0.0.0/4", "172.18.0.3")
DROP_ROUTE = ("drop_local_route", "240.0.0.0/4")


def test_opens_in_the_order_in_which_nothing_is_lost(world):
    """What is led there finds a socket that listens; what queues there is served when the data plane has it."""
    assert world.does(world.doors.open, world.door()) == [("listen",), ADD_ROUTE, ("open", "172.18.0.3")]
    assert world.doors.opened == {world.netns.id: world.door()}


def test_open_door_is_only_led_to_again(world):
    """Its networks have changed, or its rules were put back: its connections go on."""
    world.does(world.doors.open, world.door())
    assert world.does(world.doors.open, world.door(gateways=frozenset({IPv4Address("172.18.0.1")}))) == [ADD_ROUTE]


def test_a_door_moves_to_another_address(world):
    """The data plane knows callers by it. For a while, what the former one has goes on."""
    world.does(world.doors.open, world.door())
    world.addresses = (IPv4Address("172.18.0.4"),)
    moved = world.door(address="172.18.0.4")
    led = ("add_local_route", "240.0.0.0/4", "172.18.0.4")
    assert world.does(world.doors.open, moved) == [("move", "172.18.0.4"), (*led, "172.18.0.3")]
    assert world.doors.opened == {world.netns.id: moved}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(world.doors.run)
            with trio.fail_after(2):
                while world.calls != [led]:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    assert world.does(main) == [led]
    assert world.does(world.doors.open, moved) == [led]


def test_missing_address_is_said_and_not_awaited(world):
    """Nothing is touched without it."""
    world.addresses = ()
    with pytest.raises(NotYetError, match=r"does not have the address 172\.18\.0\.3") as caught:
        world.does(world.doors.open, world.door())
    assert world.calls == []
    assert caught.value.wait.args == ("/netns/3", IPv4Address("172.18.0.3"))


def test_without_a_socket_nothing_leads_there(world):
    """Also what a former appliance may have left."""
    world.fail["listen"] = OSError(98, "in use")
    with pytest.raises(RetryError, match=r"^cannot listen at its port 4: in use$"):
        world.does(world.doors.open, world.door())
    assert world.calls == [("listen",), DROP_ROUTE]
    assert world.doors.opened == {}


def test_without_a_route_no_socket_is_left(world):
    """They would keep the namespace alive."""
    world.fail["add_local_route"] = RetryError("no")
    with pytest.raises(RetryError):
        world.does(world.doors.open, world.door())
    assert all(each.closed for each in world.made)
    assert world.doors.opened == {}


def test_closes_after_its_route_is_dropped(world):
    """Nobody is led to a door that does not serve; where that fails it stays open."""
    world.does(world.doors.open, world.door())
    world.fail["drop_local_route"] = RetryError("no")
    with pytest.raises(RetryError):
        world.does(world.doors.close, world.door())
    assert world.doors.opened
    world.fail.clear()
    assert world.does(world.doors.close, world.door()) == [DROP_ROUTE, ("close", "4:3")]
    assert world.does(world.doors.close, world.door()) == [DROP_ROUTE]


def test_gone_namespace_is_only_let_go(world):
    """Its route went with it; also when it goes at that moment."""
    world.does(world.doors.open, world.door())
    world.there = False
    assert world.does(world.doors.close, world.door()) == [("close", "4:3")]


def test_namespace_that_goes_by_itself_is_let_go(world):
    """No step says so where Docker does not answer; those that are there stay."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await world.doors.open(world.door())
            await nursery.start(world.doors.run)
            await trio.sleep(0.01)
            assert world.doors.opened
            world.there = False
            with trio.fail_after(2):
                while world.doors.opened:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert world.calls[-1] == ("close", "4:3")
