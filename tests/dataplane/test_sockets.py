"""Socket helpers: what they set, and that they leave nothing behind when they fail."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

import pytest
from tcpworld import free_port, is_reset, open_descriptors

from appliance.dataplane.sockets import KEEPALIVE, at_mark, bind_source, listen, readable, reset_on_close


def opened(stack: ExitStack, *args: object, **options: object) -> list[socket.socket]:
    """Return such listening sockets with the methods that Python adds to those of the system's."""
    return [stack.enter_context(socket.socket(fileno=sock.detach())) for sock in listen(*args, **options)]


@pytest.mark.parametrize("number", [1, 3])
def test_accepted_sockets_inherit_the_options(number: int) -> None:
    """Setting them on each connection would be system calls more."""
    with ExitStack() as stack:
        sockets = opened(stack, free_port(), number)
        client = stack.enter_context(socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1])))
        accepted = None
        while accepted is None:
            for sock in sockets:
                try:
                    accepted = stack.enter_context(sock.accept()[0])
                except BlockingIOError:
                    continue
        assert accepted.getpeername() == client.getsockname()
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for level, option, value in KEEPALIVE:
            assert accepted.getsockopt(level, option) == value


def test_several_share_a_port_and_nothing_else_does() -> None:
    """The kernel spreads connections over them; a program that would share the port is refused, and the other way."""
    port = free_port()
    with ExitStack() as stack:
        opened(stack, port, 2)
        before = open_descriptors()
        with pytest.raises(OSError, match="in use") as caught:
            listen(port, 2)
        assert caught.value.errno == errno.EADDRINUSE
        assert open_descriptors() == before


def test_listening_at_one_address_leaves_the_others() -> None:
    """A door listens at one address of its namespace."""
    with ExitStack() as stack:
        (sock,) = opened(stack, 0, address="127.77.0.1")
        port = sock.getsockname()[1]
        socket.create_connection(("127.77.0.1", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.77.0.2", port))


def test_reset_on_close_resets() -> None:
    """Instead of an orderly end; a socket that is closed already is no error."""
    with ExitStack() as stack:
        (server,) = opened(stack, 0)
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.getsockname()[1])))
        server.setblocking(True)
        accepted = server.accept()[0]
        reset_on_close(accepted)
        accepted.close()
        assert is_reset(client)
        reset_on_close(accepted)


def test_a_source_takes_its_port_only_at_connect() -> None:
    """So that the same port can lead from one address to several backends."""
    with ExitStack() as stack:
        (server,) = opened(stack, 0)
        sock = stack.enter_context(socket.socket())
        bind_source(sock, ("127.0.0.9", 0))
        assert sock.getsockname() == ("127.0.0.9", 0)
        sock.connect(("127.0.0.1", server.getsockname()[1]))
        assert sock.getsockname()[0] == "127.0.0.9"
        assert sock.getsockname()[1] != 0


def test_a_source_that_this_host_lacks_is_an_error() -> None:
    """The caller leaves that backend out."""
    with socket.socket() as sock, pytest.raises(OSError, match="assign") as caught:
        bind_source(sock, ("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_what_can_be_read_ends_at_an_urgent_byte() -> None:
    """Bytes before it are told, it is told when it is next, and it is no byte to read."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        one = stack.enter_context(socket.create_connection(server.getsockname()))
        other = stack.enter_context(server.accept()[0])
        assert (readable(other), at_mark(other)) == (False, False)
        one.sendall(b"ab")
        one.send(b"!", socket.MSG_OOB)
        one.sendall(b"c")
        assert (readable(other), at_mark(other)) == (True, False)
        assert other.recv(1) == b"a"
        assert (readable(other), at_mark(other)) == (True, False)
        assert other.recv(10) == b"b"
        assert (readable(other), at_mark(other)) == (False, True)
        assert other.recv(1, socket.MSG_OOB) == b"!"
        assert other.recv(10) == b"c"
        assert (readable(other), at_mark(other)) == (False, False)
