"""What a door does with datagrams; tests/system/test_doors_udp.py has it in a real namespace."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from appliance.dataplane.udp import sockets
from appliance.dataplane.udp.door import UdpDoor
from appliance.dataplane.udp.listener import UdpListener
from appliance.model.network import DATAGRAM_DOORS, Door, NetnsId
from tests.dataplane.udpworld import CALLER, STRANGER, Socket, World, backend, free_port, listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.dataplane.udp.sockets import Client

NETNS = NetnsId(device=4, inode=1)


class FakeSockets:
    """Stands for a namespace: makes the sockets in the test's own."""

    def __init__(self) -> None:
        self.made: list[tuple[Client, Client]] = []
        self.bound: Callable[[], object] = lambda: None
        """Called between a socket's bind and connect."""
        self.short = False

    def dial_udp(self, _address: Client, _caller: str) -> None:
        """It cannot be dialled from its namespace."""

    def icmp(self) -> socket.socket:
        """It may send none."""
        raise PermissionError

    def answer_udp(self, door: socket.socket, address: Client, client: Client) -> socket.socket:
        self.made.append((address, client))
        if self.short:
            raise OSError(errno.EMFILE, "Too many open files")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sockets.bind_beside(door, sock, address)
        self.bound()
        sock.connect(client)
        return sock


class Doors(World):
    """The world of the UDP tests with a door, whose workload is CALLER."""

    def __init__(self) -> None:
        super().__init__()
        self.led: dict[int, UdpListener] = {}
        self.sockets = FakeSockets()
        door = Door(netns=NETNS, caller=IPv4Address(CALLER), dialler=IPv4Address("240.0.0.0"))
        self.port = free_port()
        self.door = UdpDoor(self.epoll, door, sockets.listen(self.port), self.led)

    def lead(self, *servers: Socket) -> Client:
        """Let the door lead to a new listener for these servers; return where to send."""
        wanted = listener(free_port(), *map(backend, servers))
        self.context.namespaces[str(NETNS)] = self.sockets
        self.udp = self.led[wanted.port] = UdpListener(self.context, wanted, doors_only=True)
        return str(DATAGRAM_DOORS.network_address + wanted.port), self.port

    def carry(self, client: Socket, to: Client, server: Socket) -> None:
        """Send something there and back."""
        client.send(b"question", to)
        data, sender = server.receive()
        assert data == b"question"
        server.send(b"answer", sender)
        assert client.receive() == (b"answer", to)

    def close(self) -> None:
        """Close everything."""
        self.door.close()
        super().close()


@pytest.fixture
def world() -> Iterator[Doors]:
    """A door in a loop to which no exception may get."""
    world = Doors()
    yield world
    world.close()
    assert not world.errors


def test_every_client_is_the_doors_workload(world: Doors) -> None:
    """The address that it calls from means nothing, and answers come from the address that it asked."""
    server, client = world.socket(), world.socket(STRANGER)
    to = world.lead(server)
    for _ in range(3):
        world.carry(client, to, server)
    assert world.udp is not None
    (connection,) = world.udp.connections()
    assert connection.client == f"{CALLER}:{client.address[1]}"
    assert (connection.bytes_in, connection.bytes_out) == (3 * 8, 3 * 6)


def test_a_client_that_asks_twice_gets_a_socket(world: Doors) -> None:
    """One that asks once does not: a query with one answer is not worth it."""
    server, once, twice = world.socket(), world.socket(), world.socket()
    to = world.lead(server)
    world.carry(once, to, server)
    for _ in range(4):
        world.carry(twice, to, server)
    assert world.sockets.made == [(to, twice.address)]


def test_without_a_socket_of_its_own_a_client_is_served_too(world: Doors) -> None:
    """There may be no file descriptors left; opening one is tried once."""
    server, client = world.socket(), world.socket()
    to = world.lead(server)
    world.sockets.short = True
    for _ in range(5):
        world.carry(client, to, server)
    assert len(world.sockets.made) == 1


def test_what_comes_while_a_socket_is_made_is_its_senders(world: Doors) -> None:
    """Until it is connected it gets what any client sends to that address: none of it is lost or mixed up."""
    server, client, other = world.socket(), world.socket(), world.socket()
    to = world.lead(server)
    world.carry(client, to, server)
    world.sockets.bound = lambda: other.send(b"other", to)
    client.send(b"client", to)
    got = dict(server.receive() for _ in range(2))
    assert got.keys() == {b"client", b"other"}
    assert got[b"client"] != got[b"other"]
    for data, sender in got.items():
        server.send(data, sender)
    assert client.receive() == (b"client", to)
    assert other.receive() == (b"other", to)


def test_what_leads_nowhere_is_dropped(world: Doors) -> None:
    """An address of no listener, and one that is not the door's although its socket receives at it."""
    server, client = world.socket(), world.socket()
    to = world.lead(server)
    for address in ("127.66.0.2", "127.0.0.1"):
        client.send(b"lost", (address, world.port))
    world.carry(client, to, server)
    assert server.queued() == []
