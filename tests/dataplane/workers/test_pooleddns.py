from __future__ import annotations

import socket
from ipaddress import IPv4Address
from typing import Any, cast

import pytest

from appliance.dataplane.workers import messages
from appliance.dataplane.workers.pooleddns import PooledDns
from appliance.dataplane.workers.process import WorkerProcess
from appliance.model.network import Door, NetnsId, Zone

ONE, TWO = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
DOOR = Door(netns=NetnsId(device=4, inode=7), caller=ONE, dialler=TWO)
ZONE = Zone(suffix="mesh.internal")


class Told:
    """A worker that keeps what it is told, and refuses closed sockets, as a channel does."""

    def __init__(self) -> None:
        self.messages: list[object] = []
        self.sockets: list[tuple[Any, ...]] = []

    def send(self, message: object, sockets: tuple[Any, ...] = ()) -> None:
        """Keep it."""
        assert all(sock.fileno() >= 0 for sock in sockets)
        self.messages.append(message)
        self.sockets.append(tuple(sockets))


@pytest.fixture
def told() -> Told:
    """The first worker."""
    return Told()


def pooled(told: Told, port: int = 0) -> PooledDns:
    """A server on a port that is free, or any at each address."""
    return PooledDns(cast("WorkerProcess", told), port)


def test_a_new_process_is_told_everything(told: Told) -> None:
    """In an order in which each address comes with those before it."""
    dns = pooled(told)
    dns.set_addresses(frozenset({ONE, TWO}))
    dns.set_zone(ZONE)
    with socket.socket() as sock:
        dns.open_door(DOOR, (sock,))
        told.messages.clear()
        dns.tell_all()
        assert told.messages == [
            messages.AnswerFrom(ZONE),
            messages.ServeDns(frozenset({ONE}), ONE),
            messages.ServeDns(frozenset({ONE, TWO}), TWO),
            messages.ServeDnsDoor(DOOR, 1),
        ]
        assert told.sockets[-1] == (sock,)
        dns.close()
        assert sock.fileno() == -1


def test_an_address_that_is_taken_keeps_no_other_from_being_served(told: Told) -> None:
    """The error names it."""
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind((str(ONE), 0))
        port = other.getsockname()[1]
        dns = pooled(told, port)
        with pytest.raises(OSError, match=f"127[.]0[.]0[.]1:{port}"):
            dns.set_addresses(frozenset({ONE, TWO}))
    assert told.messages[-1] == messages.ServeDns(frozenset({TWO}), TWO)
    dns.close()


def test_a_door_keeps_its_sockets_when_its_workload_moves(told: Told) -> None:
    """Without new ones it is told of the address alone; one that is closed is not."""
    dns = pooled(told)
    with socket.socket() as sock:
        dns.open_door(DOOR, (sock,))
        dns.open_door(DOOR, ())
        assert told.messages[-1] == messages.ServeDnsDoor(DOOR, 0)
        dns.close_door(DOOR.netns)
        assert sock.fileno() == -1
        before = len(told.messages)
        dns.open_door(DOOR, ())
        dns.close_door(DOOR.netns)
        assert len(told.messages) == before
