"""Who listens where, asked of the kernel: real sockets on loopback. tests/system has interfaces and containers."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest
import trio

from appliance.drivers.netns import identity, listening, netlink
from appliance.drivers.netns.listening import BATCH, NamespacePorts, QuestionTurns
from appliance.model.facts import BoundPort, UnreachedPort
from appliance.model.names import Protocol
from appliance.model.network import NetnsId

HERE, NEXT = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


@pytest.fixture
def stack():
    """Sockets that are closed at the end."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def here(stack):
    """The namespace of this process."""
    made = NamespacePorts(netlink.own_socket(4), identity.HOST)
    stack.callback(made.close)
    return made


def opened(stack, protocol, family, address, *, v6only=False, listens=True):
    """Return the port of a new socket at that address."""
    sock = stack.enter_context(socket.socket(family, KINDS[protocol]))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    sock.bind((address, 0))
    if protocol is Protocol.TCP and listens:
        sock.listen(1)
    return protocol, sock.getsockname()[1]


def bound(namespace, addresses, *ports, **options):
    """What is found of these ports at these addresses."""
    return trio.run(lambda: namespace.bound(addresses, ports, QuestionTurns(), **options))


def unreached(namespace, *ports):
    """What is found of them where nobody reaches it."""
    return trio.run(namespace.unreached, ports, QuestionTurns())


@pytest.mark.parametrize("protocol", Protocol)
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
def test_a_socket_counts_where_it_takes_what_comes(stack, here, protocol, family, address, v6only, found):
    """As the kernel itself decides for a packet to that address."""
    port = opened(stack, protocol, family, address, v6only=v6only)
    for one in (HERE, NEXT):
        assert bound(here, (one,), port) == ({BoundPort(*port)} if one in found else set())


@pytest.mark.parametrize("protocol", Protocol)
def test_the_first_address_that_reaches_it_is_told(stack, here, protocol):
    """One at all addresses is reached the usual way, whatever else the container has."""
    everywhere = opened(stack, protocol, socket.AF_INET, "0.0.0.0")
    second = opened(stack, protocol, socket.AF_INET, "127.0.0.2")
    nowhere = opened(stack, protocol, socket.AF_INET, "127.0.0.3")
    assert bound(here, (HERE, NEXT), everywhere, second, nowhere) == {
        BoundPort(*everywhere),
        BoundPort(*second, NEXT),
    }


def test_a_socket_that_does_not_listen_does_not_count(stack, here):
    """Neither one that is bound only nor a connection that was accepted on that port."""
    only_bound = opened(stack, Protocol.TCP, socket.AF_INET, "0.0.0.0", listens=False)
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = stack.enter_context(socket.create_connection(server.getsockname()))
    stack.enter_context(server.accept()[0])
    server.close()
    assert bound(here, (HERE,), only_bound, (Protocol.TCP, client.getpeername()[1])) == set()


def test_a_datagram_socket_that_is_connected_does_not_count(stack, here):
    """It takes nothing from others; a server that has one for each client also has one that is not connected."""
    client = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("0.0.0.0", 0))
    port = client.getsockname()[1]
    client.connect(("127.0.0.1", 9))
    assert bound(here, (HERE,), (Protocol.UDP, port)) == set()
    server = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", port))
    assert bound(here, (HERE,), (Protocol.UDP, port)) == {BoundPort(Protocol.UDP, port)}


def test_the_same_number_of_the_other_protocol_is_another_port(stack, here):
    """A name server may take questions by UDP only."""
    port = opened(stack, Protocol.UDP, socket.AF_INET, "0.0.0.0")[1]
    assert bound(here, (HERE,), (Protocol.TCP, port), (Protocol.UDP, port)) == {BoundPort(Protocol.UDP, port)}


def test_what_comes_and_goes_is_seen(stack, here):
    """The same question is asked again and again."""
    ports = (opened(stack, Protocol.TCP, socket.AF_INET, "0.0.0.0", listens=False),)
    assert bound(here, (HERE,), *ports) == set()
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        asked, addresses = ((Protocol.TCP, sock.getsockname()[1]),), (HERE,)

        async def look():
            return await here.bound(addresses, asked, QuestionTurns())

        assert trio.run(look) == set()
        sock.listen()
        assert trio.run(look) == {BoundPort(*asked[0])}
    assert trio.run(look) == set()


@pytest.mark.parametrize("protocol", Protocol)
def test_where_nobody_reaches_it_is_told_in_words(stack, here, protocol):
    """What a user looks for: the program listens, and yet nothing comes."""
    local = opened(stack, protocol, socket.AF_INET, "127.0.0.1")
    local6 = opened(stack, protocol, socket.AF_INET6, "::1", v6only=True)
    all6 = opened(stack, protocol, socket.AF_INET6, "::", v6only=True)
    assert unreached(here, local, local6, all6, (protocol, 9)) == {
        UnreachedPort(*local, "at 127.0.0.1"),
        UnreachedPort(*local6, "at ::1"),
        UnreachedPort(*all6, "by IPv6"),
    }


def test_many_ports_are_asked_in_turns(stack, here):
    """All are answered, whatever number of them has a program; traffic has its turn in between."""
    ports = [opened(stack, Protocol.TCP, socket.AF_INET, "127.0.0.1", listens=n % 2 == 0) for n in range(3 * BATCH + 1)]
    turns = []

    async def main():
        async def beside():
            while True:
                turns.append(1)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beside)
            found = await here.bound((HERE,), ports, QuestionTurns())
            nursery.cancel_scope.cancel()
        return found

    assert trio.run(main) == {BoundPort(*port) for port in ports[::2]}
    assert len(turns) >= 3


def test_turns_count_over_containers(monkeypatch):
    """Fifty containers with two ports each cost as much as two with fifty."""
    passed = []

    async def checkpoint():
        passed.append(1)

    monkeypatch.setattr(trio.lowlevel, "checkpoint", checkpoint)

    async def main():
        turns = QuestionTurns()
        for _ in range(BATCH // 2 - 1):
            await turns.after(2)
        assert not passed
        await turns.after(2)
        assert passed == [1]
        await turns.after(BATCH - 1)
        assert passed == [1]
        assert turns.asked == 2 * BATCH - 1

    trio.run(main)


def test_what_the_kernel_cannot_say_is_an_error(stack):
    """It is not that nobody is there."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    stack.enter_context(kernel)
    ours.setblocking(False)
    namespace = NamespacePorts(ours, identity.HOST)
    stack.callback(namespace.close)
    kernel.send(netlink.request(netlink.NLMSG_ERROR, 0, (-errno.ENOMEM).to_bytes(4, "little", signed=True)))
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        bound(namespace, (HERE,), (Protocol.TCP, 1))
    kernel.send(b"one")
    with pytest.raises(OSError, match=os.strerror(errno.EBADMSG)):
        bound(namespace, (HERE,), (Protocol.TCP, 1))
    with pytest.raises(BlockingIOError):
        bound(namespace, (HERE,), (Protocol.TCP, 1))


def test_this_kernel_answers():
    """Otherwise ports are dialled only, and the other tests are of no use."""
    assert listening.answered() == set(Protocol)


@pytest.mark.parametrize("missing", Protocol)
def test_a_kernel_that_does_not_answer_is_noticed(monkeypatch, missing):
    """It says of each port that nobody is there (CONFIG_INET_TCP_DIAG, CONFIG_INET_UDP_DIAG)."""
    numbers = {**listening._NUMBERS, missing: socket.IPPROTO_ICMP}
    monkeypatch.setattr(listening, "_NUMBERS", numbers)
    assert listening.answered() == set(Protocol) - {missing}


def test_a_namespace_that_is_gone_is_not_asked():
    """Its file leads nowhere, or to a namespace that came later."""
    assert listening.open_in("/proc/self/ns/nothing", NetnsId(device=4, inode=1)) is None
    assert listening.open_in(identity.HOST, NetnsId(device=4, inode=1)) is None
    found = listening.open_in(identity.HOST, identity.identify(identity.HOST))
    assert found is not None
    found.close()
