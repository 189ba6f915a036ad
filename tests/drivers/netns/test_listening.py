"""Who listens, asked of the kernel: real sockets on loopback. tests/system has it in containers."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest
import trio

from appliance.drivers.netns import identity, listening, netlink
from appliance.model.network import NetnsId

HERE, NEXT = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
LIMIT = 1024
"""More ports than are asked in one datagram, of a program that holds as many sockets."""


@pytest.fixture
def stack():
    """Sockets that are closed at the end."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def asked(stack):
    """A socket for look-ups in the namespace of this process."""
    return stack.enter_context(netlink.own_socket(4))


def opened(stack, family, address, *, v6only=False, listens=True):
    """Return the port of a new socket at that address."""
    sock = stack.enter_context(socket.socket(family))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    sock.bind((address, 0))
    if listens:
        sock.listen(1)
    return sock.getsockname()[1]


@pytest.mark.parametrize(
    ("family", "address", "v6only", "found"),
    [
        pytest.param(socket.AF_INET, "0.0.0.0", False, {HERE, NEXT}, id="all addresses"),
        pytest.param(socket.AF_INET, "127.0.0.2", False, {NEXT}, id="that address"),
        pytest.param(socket.AF_INET, "127.0.0.3", False, set(), id="another address, such as loopback"),
        pytest.param(socket.AF_INET6, "::", False, {HERE, NEXT}, id="IPv6 that takes IPv4"),
        pytest.param(socket.AF_INET6, "::", True, set(), id="IPv6 only"),
        pytest.param(socket.AF_INET6, "::ffff:127.0.0.2", False, {NEXT}, id="that address in IPv6"),
    ],
)
def test_a_listener_counts_where_it_takes_connections(stack, asked, family, address, v6only, found):
    """As the kernel itself decides for a connection to that address."""
    port = opened(stack, family, address, v6only=v6only)
    for one in (HERE, NEXT):
        assert trio.run(listening.listening, asked, one, [port]) == ({port} if one in found else set())


def test_a_socket_that_does_not_listen_does_not_count(stack, asked):
    """Neither one that is bound only nor a connection that was accepted on that port."""
    bound = opened(stack, socket.AF_INET, "0.0.0.0", listens=False)
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = stack.enter_context(socket.create_connection(server.getsockname()))
    stack.enter_context(server.accept()[0])
    server.close()
    assert trio.run(listening.listening, asked, HERE, [bound, client.getpeername()[1]]) == set()


def test_many_ports_are_asked_in_turns(stack, asked):
    """All are answered, whatever number of them listens."""
    ports = [opened(stack, socket.AF_INET, "127.0.0.1", listens=n % 2 == 0) for n in range(3 * listening.BATCH + 1)]
    assert trio.run(listening.listening, asked, HERE, ports) == set(ports[::2])


def test_this_kernel_answers():
    """Otherwise ports are dialled only, and the other tests are of no use."""
    assert listening.works()


def test_a_namespace_that_is_gone_is_not_asked():
    """Its file leads nowhere, or to a namespace that came later."""
    assert listening.open_in("/proc/self/ns/nothing", NetnsId(device=4, inode=1)) is None
    found = listening.open_in(identity.HOST, NetnsId(device=4, inode=1))
    assert found is None
