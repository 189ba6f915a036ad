"""What a door does with its clients; tests/system/test_doors.py has it in a real namespace."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest
from tcpworld import CALLER, STRANGER, World, eventually, is_reset

from appliance.dataplane.sockets import listen, packed_destination
from appliance.dataplane.tcp.door import TcpDoor
from appliance.model.network import Door, NetnsId

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

DOOR = Door(
    netns=NetnsId(device=4, inode=1),
    caller=IPv4Address(CALLER),
    dialler=IPv4Network("240.0.0.0/4").network_address,
)
DIALLED = "127.77.0.1"
"""Stands for a virtual IP."""


def came_to(client: socket.socket) -> bytes:
    """Return where a connection went: here no rules lead it elsewhere."""
    host, port = client.getsockname()
    return packed_destination(IPv4Address(host), port)


class Doors(World):
    """The world of the TCP tests with a door that listens at DIALLED."""

    def __init__(self) -> None:
        super().__init__()
        self.led = {}
        (sock,) = listen(0, address=DIALLED)
        self.port = sock.getsockname()[1]
        self.door = self.call(partial(TcpDoor, self.context, DOOR, sock, self.led, dialled=came_to))

    def lead(self, *backends: socket.socket) -> None:
        """Let the door lead to a new listener for these backends."""
        self.led[packed_destination(IPv4Address(DIALLED), self.port)] = self.open(*backends)

    def enter(self, host: str = STRANGER) -> socket.socket:
        """Return a socket that has dialled what the door is for."""
        sock = self.client(host)
        sock.connect((DIALLED, self.port))
        return sock

    def _end(self) -> None:
        self.door.stop()
        super()._end()


@pytest.fixture
def world() -> Iterator[Doors]:
    """A door."""
    made = Doors()
    yield made
    made.close()


def test_every_client_is_the_doors_workload(world: Doors) -> None:
    """The address that it calls from means nothing."""
    backend = world.backend()
    world.lead(backend)
    client = world.enter()
    world.accept(backend).sendall(b"welcome")
    assert client.recv(10) == b"welcome"
    (connection,) = world.call(world.listeners[0].connections)
    assert connection.client == f"{CALLER}:{client.getsockname()[1]}"
    assert (world.stats().accepted, world.stats().refused) == (1, 0)


def test_what_leads_nowhere_is_reset(world: Doors) -> None:
    """A virtual IP or port without a listener."""
    with suppress(ConnectionResetError):  # as fast as that
        assert is_reset(world.enter())


def test_those_who_wait_at_the_end_are_served(world: Doors) -> None:
    """A door that closes accepts the clients that the kernel has let in already."""
    backend = world.backend()
    world.lead(backend)
    world.call(world.door.acceptor.pause)
    clients = [world.enter() for _ in range(3)]
    world.call(world.door.stop)
    for client in clients:
        world.accept(backend).sendall(b"welcome")
        assert client.recv(10) == b"welcome"


def test_without_file_descriptors_for_a_backend_it_rests(world: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that took the last one is reset; those behind it wait without cost."""
    monkeypatch.setattr("appliance.dataplane.tcp.accept.ACCEPT_PAUSE", 0.05)
    backend = world.backend()
    world.lead(backend)
    first = world.client(STRANGER)
    others = [world.client(STRANGER) for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        with suppress(ConnectionResetError):  # as fast as that
            first.connect((DIALLED, world.port))
            assert is_reset(first)
        eventually(lambda: world.listeners[0].acceptor.starved)
        assert world.call(lambda: world.door.acceptor.pausing)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for client in others:
        client.connect((DIALLED, world.port))
    for client in others:
        world.accept(backend).sendall(b"at last")
        assert client.recv(10) == b"at last"
