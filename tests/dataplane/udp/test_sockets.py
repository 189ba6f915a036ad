"""UDP sockets, and the control data that says which address was asked."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from tcpworld import open_descriptors

from appliance.dataplane.udp import sockets
from appliance.dataplane.udp.sockets import (
    BUFFERS,
    PKTINFO_SPACE,
    asked_address,
    bind_address,
    bind_beside,
    connect,
    listen,
    packed_address,
    reply_control,
)
from tests.dataplane.udpworld import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 5.0
OPTIONS = ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT))
"""What a program may ask for to share a port."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test opens."""
    with ExitStack() as opened:
        yield opened


def plain(stack: ExitStack, sock: socket.SocketType) -> socket.socket:
    """Return a socket that waits, and is closed at the end."""
    made = stack.enter_context(socket.socket(fileno=sock.detach()))
    made.settimeout(DEADLINE)
    return made


def client(stack: ExitStack, host: str = "127.0.0.1") -> socket.socket:
    """Return a client's socket."""
    sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    sock.settimeout(DEADLINE)
    sock.bind((host, 0))
    return sock


def test_a_reply_leaves_from_the_address_that_was_asked(stack: ExitStack) -> None:
    """By the control data of the question."""
    port = free_port()
    server, asker = plain(stack, listen(port)), client(stack)
    asker.sendto(b"?", ("127.0.0.7", port))
    _, asked, _, who = server.recvmsg_into(BUFFERS, PKTINFO_SPACE)
    assert asked_address(asked) == "127.0.0.7"
    assert packed_address(asked) == bytes((127, 0, 0, 7))
    server.sendmsg((b"!",), reply_control(asked), 0, who)
    assert asker.recvfrom(9) == (b"!", ("127.0.0.7", port))


@pytest.mark.parametrize("asked", [[], [(socket.SOL_SOCKET, 8, bytes(12))], [(socket.IPPROTO_IP, 8, bytes(4))]])
def test_other_control_data_says_nothing(asked: list[tuple[int, int, bytes]]) -> None:
    """Data of another kind, or cut short."""
    assert asked_address(asked) is packed_address(asked) is None
    assert reply_control(asked) == []


def test_a_socket_at_an_address_takes_over_what_is_sent_there(stack: ExitStack) -> None:
    """And nothing else; no other program can share the port, not even at that address."""
    port = free_port()
    everywhere = plain(stack, listen(port))
    at_one = plain(stack, bind_address(everywhere, ("127.0.0.7", port)))
    asker = client(stack)
    for address in ("127.0.0.7", "127.0.0.8"):
        asker.sendto(address.encode(), (address, port))
    assert at_one.recv(99) == b"127.0.0.7"
    assert everywhere.recv(99) == b"127.0.0.8"
    for option, address in product(OPTIONS, ("127.0.0.7", "127.0.0.9", "0.0.0.0")):
        refuse(option, (address, port))


def test_a_doors_socket_shares_its_port_with_those_of_clients(stack: ExitStack) -> None:
    """Which are bound beside it and connected; what others send still comes in at the door.

    No other program can share the port, whatever it asks for: it would take what clients send.
    """
    port = free_port()
    door, other = plain(stack, listen(port)), client(stack)
    for _ in range(2):
        one, own = client(stack), stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        own.settimeout(DEADLINE)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind_beside(door, own, ("127.0.0.7", port))
        own.connect(one.getsockname())
        one.sendto(b"one", ("127.0.0.7", port))
        other.sendto(b"other", ("127.0.0.7", port))
        assert own.recv(99) == b"one"
        assert door.recv(99) == b"other"
    for option, address in product(OPTIONS, ("127.0.0.7", "127.0.0.9", "0.0.0.0")):
        refuse(option, (address, port))


def test_the_port_is_shared_with_nobody_even_during_the_bind(stack: ExitStack) -> None:
    """A program that tries without pause gets there in the moment in which the sockets may share their port."""
    port = free_port()
    door, tried = plain(stack, listen(port)), []

    class Bound(socket.socket):
        """During whose bind the other program tries. One of the same user as well, where owners can be changed."""

        def bind(self, address: Any) -> None:
            assert door.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            for option, host in product(OPTIONS if os.geteuid() == 0 else OPTIONS[:2], ("127.0.0.7", "0.0.0.0")):
                refuse(option, (host, port))
                tried.append(option)
            super().bind(address)

    own = stack.enter_context(Bound(type=socket.SOCK_DGRAM))
    bind_beside(door, own, ("127.0.0.7", port))
    assert tried
    assert os.fstat(door.fileno()).st_uid == os.fstat(own.fileno()).st_uid == os.geteuid()


def refuse(options: tuple[int, ...], address: tuple[str, int]) -> None:
    """Try to bind as another program would, which is refused."""
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        for option in options:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(address)


def test_a_backend_is_asked_from_its_source(stack: ExitStack) -> None:
    """The address of this host that it lets in."""
    server = client(stack)
    for source, seen in ((None, "127.0.0.1"), (("127.0.0.9", 0), "127.0.0.9")):
        plain(stack, connect(server.getsockname(), source)).send(b"?")
        assert server.recvfrom(9)[1][0] == seen


def test_what_fails_leaves_nothing_behind(stack: ExitStack) -> None:
    """A taken port, and a source that this host lacks."""
    port = free_port()
    plain(stack, listen(port))
    before = open_descriptors()
    for number, make in (
        (errno.EADDRINUSE, lambda: listen(port)),
        (errno.EADDRNOTAVAIL, lambda: connect(("127.0.0.1", port), ("192.0.2.1", 0))),
    ):
        with pytest.raises(OSError, match=r"in use|assign") as caught:
            make()
        assert caught.value.errno == number
    assert open_descriptors() == before


def test_without_privileges_it_gets_what_room_the_system_allows(stack: ExitStack) -> None:
    """SO_RCVBUFFORCE is for CAP_NET_ADMIN."""

    class Unprivileged:
        """A socket of a process without that."""

        def __init__(self) -> None:
            self.sock = client(stack)

        def setsockopt(self, level: int, option: int, value: int) -> None:
            if option == sockets.SO_RCVBUFFORCE:
                raise PermissionError
            self.sock.setsockopt(level, option, value)

    unprivileged = Unprivileged()
    before = unprivileged.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    sockets.make_room(unprivileged)  # type: ignore[arg-type]
    assert unprivileged.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= before
