"""The sockets at which clients' datagrams come in; test_door.py has those of clients behind a door from end to end."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from appliance.dataplane.loop.epoll import IN
from appliance.dataplane.udp.batch import BATCH
from appliance.dataplane.udp.client import ClientSocket, open_client_socket
from appliance.dataplane.udp.session import NO_CONTROL, Session
from tests.dataplane.udpworld import CALLER, World, backend

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = "127.0.0.7"


@pytest.fixture
def world() -> Iterator[World]:
    """A loop to which no exception may get."""
    world = World()
    yield world
    world.close()
    assert not world.errors


def own_socket(world: World, unsure: int) -> tuple[ClientSocket, Session]:
    """Return a client's own socket, which checks senders for so many wake-ups, and its session."""
    server, client = world.socket(), world.socket()
    udp, (_, port) = world.open(backend(server))
    client.send(b"first", (ASKED, port))
    server.receive()
    (session,) = udp._sessions.values()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((ASKED, 0))
    sock.connect(client.address)
    own = ClientSocket(session, sock)
    own._checks = unsure
    session.client_socket = own
    return own, session


def test_the_second_datagram_to_an_address_comes_in_at_a_socket_there(world: World) -> None:
    """The first one tells by its control data which address was asked; without any it is cheaper."""
    server, client = world.socket(), world.socket()
    udp, (_, port) = world.open(backend(server))
    client.send(b"first", (ASKED, port))
    server.receive()
    (session,) = udp._sessions.values()
    first = session.arrival
    assert first is udp._port_socket.sock
    assert session.reply != NO_CONTROL
    client.send(b"second", (ASKED, port))
    server.receive()
    assert session.arrival is udp._address_sockets[ASKED].sock
    assert session.reply == NO_CONTROL


def test_what_is_queued_when_a_socket_is_opened_keeps_its_order(world: World) -> None:
    """The port's socket is read until it is empty, though traffic was sparse."""
    server, client = world.socket(), world.socket()
    udp, (_, port) = world.open(backend(server))
    for number in range(BATCH):
        client.send(b"%d" % number, (ASKED, port))
    udp._port_socket.ready(IN)
    assert server.queued() == [b"%d" % number for number in range(BATCH)]


def test_a_datagram_that_no_caller_sent_opens_no_socket(world: World) -> None:
    """An address socket is for those that are served."""
    udp, (_, port) = world.open()
    world.socket("127.0.0.3").send(b"?", (ASKED, port))
    world.until(lambda: udp.refused == 1)
    assert udp._address_sockets == {}


@pytest.mark.parametrize("unsure", [0, 10], ids=["sure", "checking"])
def test_an_own_socket_passes_its_clients_datagrams_on(world: World, unsure: int) -> None:
    """While it still checks senders, and after."""
    own, session = own_socket(world, unsure)
    client = next(sock for sock in world._sockets if sock.address == session.client)
    server = next(sock for sock in world._sockets if sock.address == session.state.address)
    for _ in range(3):
        client.send(b"more", own.sock.getsockname())
    for _ in range(3):
        own.ready(IN)
    assert server.queued() == [b"more"] * 3
    own.sock.close()


def test_an_own_socket_of_a_draining_session_finds_the_client_another(world: World) -> None:
    """Its datagrams are for a backend that stays."""
    own, session = own_socket(world, 0)
    udp = world.udp
    assert udp is not None
    client = next(sock for sock in world._sockets if sock.address == session.client)
    udp._drain(session)
    client.send(b"more", own.sock.getsockname())
    own.ready(IN)
    assert own.session is not session
    assert own.session is udp._sessions[session.key]
    assert own.session.client_socket is own
    own.closed = True
    own.sock.close()


def test_a_session_gets_no_socket_where_none_can_be(world: World) -> None:
    """Without an address that was asked, and for want of file descriptors."""

    class Sockets:
        """A namespace without file descriptors."""

        def dial_udp(self, _address: object, _caller: str) -> None:
            """Dial nothing."""

        def answer_udp(self, _door: object, _address: object, _client: object) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

    own, session = own_socket(world, 0)
    assert open_client_socket(session, Sockets()) is None
    session.asked = NO_CONTROL
    assert open_client_socket(session, Sockets()) is None
    own.sock.close()
    assert session.caller.host == CALLER
