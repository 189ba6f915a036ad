from __future__ import annotations

import errno
import socket
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance.dataplane.loop.epoll import IN
from appliance.dataplane.udp import listener as module
from appliance.dataplane.udp.batch import BATCH
from appliance.dataplane.udp.listener import MAX_ADDRESS_SOCKETS, UdpListener
from appliance.dataplane.udp.session import Session
from appliance.model.network import Backend
from tests.dataplane.udpworld import CALLER, PEER, STRANGER, Socket, World, backend, listener

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    """A loop to which no exception may get."""
    world = World()
    yield world
    world.close()
    assert not world.errors


def test_a_datagram_goes_to_the_backend_and_its_reply_comes_back(world: World) -> None:
    """Both directions pass, and are counted with client, backend and bytes."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server, label="orange-0"))
    client.send(b"question", port)
    data, session = server.receive()
    assert data == b"question"
    server.send(b"answer!", session)
    assert client.receive() == (b"answer!", port)
    (seen,) = udp.connections()
    assert (seen.client, seen.backend) == ("{}:{}".format(*client.address), "{}:{}".format(*server.address))
    assert (seen.label, seen.bytes_in, seen.bytes_out, seen.draining) == ("orange-0", 8, 7, False)
    stats = udp.stats()
    assert (stats.accepted, stats.active, stats.refused, stats.failed) == (1, 1, 0, 0)
    (counted,) = stats.backends
    assert (counted.opened, counted.active, counted.bytes_in, counted.bytes_out) == (1, 1, 8, 7)
    assert udp.pairs_to(IPv4Address(server.address[0])) == udp.active == 1
    assert udp.pairs_to(IPv4Address("127.0.0.99")) == 0


@pytest.mark.parametrize("number", [99999, -1, pytest.param(10**400, id="huge")])
def test_an_address_that_no_socket_takes_is_passed_over(world: World, number: int) -> None:
    """Whatever goes wrong with one backend, the other one serves, and no descriptor is left of it."""
    server = world.socket()
    bad = Backend(address=IPv4Address("127.0.0.9"), port=number, local=True, label="bad")
    udp, port = world.open(bad, backend(server))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for count in range(8):
        client = world.socket()
        client.send(b"?", port)
        assert server.receive()[0] == b"?"
        client.close()
        assert udp.stats().accepted == count + 1
    assert udp.stats().failed == 0
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 9


def test_replies_leave_from_the_address_that_was_asked(world: World) -> None:
    """A host has many addresses; a client takes an answer only from the one that it asked, which may change."""
    server, client = world.socket(), world.socket()
    _, (_, port) = world.open(backend(server))
    for asked in ("127.0.0.7", "127.0.0.8", "127.0.0.7"):
        client.send(b"?", (asked, port))
        _, session = server.receive()
        server.send(b"!", session)
        assert client.receive() == (b"!", (asked, port))


def test_any_number_of_addresses_may_be_asked(world: World) -> None:
    """The first of them get sockets of their own; all are answered in order, and nothing is left at the end."""
    server, client = world.socket(), world.socket()
    udp, (_, port) = world.open(backend(server))
    for number in range(2 * MAX_ADDRESS_SOCKETS):
        asked = (f"127.0.1.{number + 1}", port)
        for data in (b"first", b"second", b"third"):
            client.send(data, asked)
        got = [server.receive() for _ in range(3)]
        assert [data for data, _ in got] == [b"first", b"second", b"third"]
        server.send(b"!", got[0][1])
        assert client.receive() == (b"!", asked)
    assert udp.stats().accepted == 1
    udp.stop()
    udp.end_pairs()
    again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    again.bind(("0.0.0.0", port))
    again.close()


def test_the_port_is_nobody_elses(world: World) -> None:
    """Not even while it is asked at several addresses, and not for a program that is ready to share it."""
    server, client = world.socket(), world.socket()
    _, (_, port) = world.open(backend(server))
    for asked in ("127.0.0.7", "127.0.0.8"):
        client.send(b"?", (asked, port))
        server.receive()
    for address in ("0.0.0.0", "127.0.0.7", "127.0.0.9"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind((address, port))


def test_a_stranger_gets_nothing(world: World) -> None:
    """A source address that is neither caller nor peer is ignored and counted."""
    server, stranger = world.socket(), world.socket(STRANGER)
    udp, port = world.open(backend(server))
    stranger.send(b"let me in", port)
    world.until(lambda: udp.stats().refused == 1)
    assert server.queued() == []
    assert udp.active == 0


def test_datagrams_are_not_judged_while_it_is_not_known_whose_addresses_are_whose(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be lost: a client asks again."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server))
    world.context.standstill.confirm()
    monkeypatch.setattr("appliance.dataplane.standstill.LIMIT", -1.0)
    client.send(b"early", port)
    world.turn(100)
    assert (server.queued(), udp.active) == ([], 0)
    monkeypatch.setattr("appliance.dataplane.standstill.LIMIT", 60.0)
    client.send(b"late", port)
    assert server.receive()[0] == b"late"


def test_a_peer_machine_gets_local_backends_only(world: World) -> None:
    """Otherwise two proxies would send a datagram back and forth."""
    here, there = world.socket(), world.socket()
    _, port = world.open(backend(there, local=False), backend(here))
    for _ in range(20):
        world.socket(PEER).send(b"x", port)
    world.until(lambda: world.udp is not None and world.udp.active == 20)
    assert len(here.queued()) == 20
    assert there.queued() == []


def test_a_backend_is_asked_from_the_address_that_it_lets_in(world: World) -> None:
    """Of several addresses of this host, datagrams leave from the one that other machines know."""
    server = world.socket()
    _, port = world.open(replace(backend(server), source=IPv4Address("127.0.0.9")))
    world.socket().send(b"x", port)
    assert server.receive()[1][0] == "127.0.0.9"


def test_each_client_address_has_its_own_session(world: World) -> None:
    """Two sockets of one workload are two clients to the backend, and replies do not get mixed up."""
    server = world.socket()
    _, port = world.open(backend(server))
    clients = [world.socket() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(b"%d" % number, port)
    sessions = set()
    for _ in clients:
        data, session = server.receive()
        sessions.add(session)
        server.send(data * 3, session)
    assert len(sessions) == 5
    for number, client in enumerate(clients):
        assert client.receive()[0] == b"%d" % number * 3


def test_a_session_stays_with_its_backend_and_sessions_are_spread(world: World) -> None:
    """Balancing happens once per session."""
    servers = [world.socket(), world.socket()]
    udp, port = world.open(*map(backend, servers))
    clients = [world.socket() for _ in range(40)]
    for _ in range(3):
        for number, client in enumerate(clients):
            client.send(b"%d" % number, port)
        world.turn(100)
    world.until(lambda: sum(b.bytes_in for b in udp.stats().backends) == 3 * (10 + 2 * 30))
    seen = [server.queued() for server in servers]
    assert all(seen)
    assert not set(seen[0]) & set(seen[1])
    assert udp.active == 40


def test_a_silent_session_ends(world: World) -> None:
    """After the idle timeout the session is gone; the client's next datagram opens another."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server), idle=0.1)
    client.send(b"1", port)
    server.receive()
    world.until(lambda: udp.active == 0)
    assert udp.stats().backends[0].active == 0
    client.send(b"2", port)
    assert server.receive()[0] == b"2"
    assert udp.stats().accepted == 2


@pytest.mark.parametrize("speaker", ["client", "backend"])
def test_a_session_lives_while_either_side_speaks(world: World, speaker: str) -> None:
    """A stream in one direction only keeps its session."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server), idle=0.4)
    client.send(b"subscribe", port)
    _, session = server.receive()
    end = world.loop.time() + 1.2
    while world.loop.time() < end:
        if speaker == "backend":
            server.send(b"news", session)
            assert client.receive()[0] == b"news"
        else:
            client.send(b"log", port)
            assert server.receive() == (b"log", session)
        world.loop.run_until_complete(_pause(world))
    assert udp.stats().accepted == udp.active == 1


async def _pause(world: World) -> None:
    done = world.loop.create_future()
    world.loop.call_later(0.02, done.set_result, None)
    await done


def test_a_removed_allowance_ends_its_sessions(world: World) -> None:
    """The sessions of a caller that may no longer call end at once; those of others go on."""
    server, one, other = world.socket(), world.socket(CALLER), world.socket(STRANGER)
    udp, port = world.open(backend(server))
    udp.swap(listener(udp.port, backend(server), callers=(CALLER, STRANGER)))
    sessions = []
    for client in (one, other):
        client.send(b"x", port)
        sessions.append(server.receive()[1])
    udp.swap(listener(udp.port, backend(server), callers=(CALLER,)))
    assert [c.client for c in udp.connections()] == ["{}:{}".format(*one.address)]
    for session in sessions:
        server.send(b"y", session)
    assert one.receive()[0] == b"y"
    assert other.queued() == []


def test_a_session_whose_backend_goes_is_for_answers_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's next datagram goes to a backend that is there; the former one may answer what it was asked."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.2)
    former, later, client = world.socket(), world.socket(), world.socket()
    udp, port = world.open(backend(former))
    client.send(b"1", port)
    _, session = former.receive()
    udp.swap(listener(udp.port, backend(later)))
    client.send(b"2", port)
    assert later.receive()[0] == b"2"
    former.send(b"answer", session)
    assert client.receive() == (b"answer", port)
    assert former.queued() == []
    assert [c.draining for c in udp.connections()] == [False, True]
    assert udp.pairs_to(IPv4Address(former.address[0])) >= 1
    world.until(lambda: udp.active == 1)
    assert [c.draining for c in udp.connections()] == [False]
    assert sum(b.active for b in udp.stats().backends) == 1


def test_parting_sessions_end_with_what_allowed_them(world: World) -> None:
    """With the allowance, with an error of the former backend's, beyond the limit, and with the listener."""
    former, later, client = world.socket(), world.socket(), world.socket()

    def parted() -> UdpListener:
        udp, port = world.open(backend(former), limit=1)
        client.send(b"1", port)
        former.receive()
        udp.swap(listener(udp.port, backend(later)))
        assert udp.active == 1
        return udp

    udp = parted()
    udp.swap(listener(udp.port, backend(later), callers=()))
    assert udp.active == 0
    udp.stop()
    udp = parted()
    client.send(b"2", (client.address[0], udp.port))
    later.receive()
    udp.swap(listener(udp.port, backend(former)))
    assert udp.active == 1, "of two that part, one is beyond the limit"
    udp.stop()
    udp.end_pairs()
    udp = parted()
    former.close()
    (session,) = udp._draining
    session.sock.send(b"nobody is there")
    world.until(lambda: udp.active == 0)


def test_a_caller_that_becomes_a_peer_keeps_local_backends_only(world: World) -> None:
    """Its session to another machine ends."""
    there, client = world.socket(), world.socket(PEER)
    udp, port = world.open(backend(there, local=False))
    udp.swap(listener(udp.port, backend(there, local=False), callers=(PEER,)))
    client.send(b"1", port)
    there.receive()
    udp.swap(listener(udp.port, backend(there, local=False)))
    assert udp.active == 0


def test_a_backend_whose_port_is_unreachable_is_left_out(world: World) -> None:
    """At most the datagram that found out is lost; the session moves to another backend."""
    dead, alive = world.socket(), world.socket()
    udp, port = world.open(backend(dead), backend(alive))
    dead.close()
    for _ in range(20):
        client = world.socket()
        client.send(b"1", port)
        world.turn()
        client.send(b"2", port)
        world.turn()
    assert alive.queued().count(b"2") == 20
    states = {s.backend.port: s for s in udp.stats().backends}
    assert states[dead.address[1]].failed >= 1
    assert states[dead.address[1]].ejected > 1.5, "for longer than clients wait until they ask again"
    assert states[dead.address[1]].active == 0
    assert states[alive.address[1]].failed == 0


def test_a_datagram_that_meets_an_earlier_error_goes_to_another_backend(world: World) -> None:
    """The error that a send reports is that of the datagram before it: this one is not lost."""
    dead, alive = world.socket(), world.socket()
    udp, port = world.open(backend(dead), backend(alive))
    dead.close()

    def read() -> None:
        """Read what clients sent, not what became of it."""
        for handler in list(world.epoll.handlers.values()):
            if not isinstance(handler, Session):
                handler.ready(IN)

    for _ in range(10):
        # Both are left out and so equally likely; the first datagram of each client must meet the dead one.
        udp.swap(listener(udp.port, backend(dead)))
        client = world.socket()
        client.send(b"lost", port)
        read()
        udp.swap(listener(udp.port, backend(dead), backend(alive)))
        udp.balancer.failed(udp.balancer.states[alive.address])
        client.send(b"kept", port)
        read()
        assert alive.queued() == [b"kept"]
    assert udp.stats().dropped == 0


def test_the_only_backend_is_tried_again_when_it_is_back(world: World) -> None:
    """A refusing backend that is the only one stays in use, and its first reply clears its name."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server))
    server.close()
    for _ in range(3):
        client.send(b"anybody?", port)
        world.turn()
    assert udp.stats().backends[0].failed >= 1
    again = world.socket()
    again.close()
    again.__init__(world.loop)
    udp.swap(listener(udp.port, backend(again)))
    udp.balancer.failed(udp.balancer.states[again.address])
    client.send(b"hello", port)
    _, session = again.receive()
    again.send(b"here", session)
    assert client.receive()[0] == b"here"
    assert udp.stats().backends[0].ejected == 0


def test_without_a_backend_datagrams_are_counted_and_dropped(world: World) -> None:
    """Nothing is opened, and nothing is raised."""
    client = world.socket()
    udp, port = world.open()
    client.send(b"x", port)
    world.until(lambda: udp.stats().failed == 1)
    assert udp.active == 0


class Told:
    """Stands for what tells clients (refusal.Refusals)."""

    def __init__(self, world: World, udp: UdpListener) -> None:
        self.clients: list[tuple[str, str, tuple[str, int], tuple[str, int]]] = []
        udp._refusals = world.context.refusals
        udp._refusals.refuse = lambda *words: self.clients.append(words)  # type: ignore[method-assign]

    def count(self) -> int:
        """Return how often clients were told since the last time."""
        told, self.clients = self.clients, []
        return len(told)


def test_a_client_is_told_when_no_backend_takes_its_datagram(world: World) -> None:
    """For each that is lost: where there is none, where the only one refuses, and where none can be dialled."""
    server, client = world.socket(), world.socket()
    udp, port = world.open()
    told = Told(world, udp)
    client.send(b"nobody", port)
    world.until(lambda: bool(told.clients))
    assert told.clients == [(CALLER, "", client.address, port)]
    assert told.count() == 1
    udp.swap(listener(udp.port, backend(server)))
    client.send(b"somebody", port)
    server.receive()
    server.close()
    for _ in range(3):
        client.send(b"nobody", port)
        world.turn()
        assert told.count() >= 1
    udp.swap(listener(udp.port, Backend(address=IPv4Address("127.0.0.9"), port=99999, local=True, label="bad")))
    client.send(b"nobody", port)
    world.turn()
    assert told.count() == 1


def test_a_client_is_not_told_while_another_backend_is_there(world: World) -> None:
    """It asks again and is served; once all refuse it is told."""
    dead, alive = world.socket(), world.socket()
    udp, port = world.open(backend(dead), backend(alive))
    told = Told(world, udp)
    dead.close()
    for _ in range(20):
        world.socket().send(b"?", port)
        world.turn()
    assert not told.clients
    alive.close()
    client = world.socket()
    for _ in range(2):
        client.send(b"?", port)
        world.turn()
    assert told.count()


def test_a_stranger_is_told_nothing(world: World) -> None:
    """Nor is anybody for want of file descriptors, which may be there again at once."""
    server = world.socket()
    udp, port = world.open(backend(server))
    told = Told(world, udp)
    world.socket(STRANGER).send(b"?", port)
    world.until(lambda: udp.stats().refused == 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "connect", _no_descriptors)
        world.socket().send(b"?", port)
        world.until(lambda: udp.stats().failed == 1)
    assert not told.clients


def test_a_backend_without_a_route_is_passed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect that fails goes to the next backend."""
    bad, good, client = world.socket(), world.socket(), world.socket()
    connect = module.connect

    def unreachable(address: tuple[str, int], source: tuple[str, int] | None) -> object:
        if address == bad.address:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return connect(address, source)

    monkeypatch.setattr(module, "connect", unreachable)
    udp, port = world.open(backend(bad), backend(good))
    udp.balancer.failed(udp.balancer.states[good.address])
    client.send(b"x", port)
    assert good.receive()[0] == b"x"
    assert udp.stats().failed == 0


def test_want_of_ports_is_no_backends_failure(world: World) -> None:
    """A host that has nothing to ask from, as when all its ports are in use, leaves out no backend for that."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(replace(backend(server), source=IPv4Address("192.0.2.1")))
    client.send(b"x", port)
    world.until(lambda: udp.stats().failed == 1)
    assert [(b.failed, b.ejected) for b in udp.stats().backends] == [(0, 0)]


def test_no_file_descriptors_left_is_a_counted_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener goes on, and serves again when there are some."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server))
    with monkeypatch.context() as patch:
        patch.setattr(module, "connect", _no_descriptors)
        client.send(b"1", port)
        world.until(lambda: udp.stats().failed == 1)
    client.send(b"2", port)
    assert server.receive()[0] == b"2"
    assert udp.stats().backends[0].failed == 0


def _no_descriptors(_address: tuple[str, int], _source: tuple[str, int] | None) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def test_stopped_it_opens_no_session_and_ends_with_its_last(world: World) -> None:
    """Open sessions go on; then the port is free and the owner is told, once."""
    server, client, late = world.socket(), world.socket(), world.socket()
    told: list[UdpListener] = []
    udp, port = world.open(backend(server), on_empty=told.append)
    client.send(b"1", port)
    _, session = server.receive()
    udp.stop()
    late.send(b"too late", port)
    client.send(b"2", port)
    assert server.receive() == (b"2", session)
    server.send(b"3", session)
    assert client.receive() == (b"3", port)
    assert [c.draining for c in udp.connections()] == [True]
    assert told == []
    udp.end_pairs()
    udp.stop()
    assert told == [udp]
    assert udp.active == 0
    world.udp = UdpListener(world.context, listener(udp.port))


def test_stopped_without_sessions_it_is_gone_at_once(world: World) -> None:
    """The port is free when stop returns."""
    told: list[UdpListener] = []
    udp, _ = world.open(on_empty=told.append)
    udp.stop()
    assert told == [udp]
    world.udp = UdpListener(world.context, listener(udp.port))


def test_a_port_in_use_is_an_error_of_opening(world: World) -> None:
    """The control plane learns EADDRINUSE, and no socket stays behind."""
    udp, _ = world.open()
    with pytest.raises(OSError, match="in use") as raised:
        UdpListener(world.context, listener(udp.port))
    assert raised.value.errno == errno.EADDRINUSE


def test_sessions_are_bounded(world: World) -> None:
    """At the limit the one that has been silent longest makes room; it is counted."""
    server = world.socket()
    udp, port = world.open(backend(server), limit=3)
    clients = [world.socket() for _ in range(5)]
    for number in (0, 1, 2, 0, 3, 4):
        clients[number].send(b"%d" % number, port)
        server.receive()
    assert _clients(udp) == {clients[0].address, clients[3].address, clients[4].address}
    stats = udp.stats()
    assert (stats.evicted, stats.accepted, stats.active, stats.backends[0].active) == (2, 5, 3, 3)


@pytest.mark.parametrize("again", [1, 2])
def test_a_long_session_stays_beside_any_number_of_short_ones(world: World, again: int) -> None:
    """It has spoken after an answer, even if only once; questions come from the same caller and from others."""
    server, long = world.socket(), world.socket()
    udp, port = world.open(backend(server), limit=8)
    udp.swap(replace(udp._wanted, callers=frozenset(map(IPv4Address, (CALLER, "127.0.0.3")))))
    seen = set()

    def ask(client: Socket, data: bytes) -> tuple[str, int]:
        client.send(data, port)
        _, session = server.receive()
        server.send(b"!", session)
        assert client.receive() == (b"!", port)
        return session

    for _ in range(1 + again):
        seen.add(ask(long, b"long"))
    for number in range(40):
        short = world.socket(CALLER if number % 3 else "127.0.0.3")
        ask(short, b"short")
        short.close()
    seen.add(ask(long, b"long"))
    assert len(seen) == 1
    assert udp.active == 8 + 1
    assert udp.stats().evicted == 40 - 8


def test_many_answers_under_way_arrive(world: World) -> None:
    """At the limit those that were answered make room, and not those that wait for a slow backend."""
    server = world.socket()
    udp, port = world.open(backend(server), limit=8)
    for _ in range(8):
        over = world.socket()
        over.send(b"?", port)
        server.send(b"!", server.receive()[1])
        over.receive()
    asking = [world.socket() for _ in range(8)]
    for client in asking:
        client.send(b"?", port)
    waiting = [server.receive()[1] for _ in asking]
    for session in waiting:
        server.send(b"!", session)
    for client in asking:
        assert client.receive() == (b"!", port)
    assert udp.stats().evicted == 8


def test_a_caller_evicts_its_own_sessions_first(world: World) -> None:
    """However many ports it sends from: another's datagrams go on to the same backend from the same port."""
    server, other = world.socket(), world.socket("127.0.0.3")
    udp, port = world.open(backend(server), limit=6)
    udp.swap(replace(udp._wanted, callers=frozenset(map(IPv4Address, (CALLER, "127.0.0.3")))))
    other.send(b"first", port)
    _, seen = server.receive()
    for turn in range(4):
        for _ in range(8):
            world.socket().send(b"flood", port)
            server.receive()
        other.send(b"%d" % turn, port)
        assert server.receive() == (b"%d" % turn, seen)
    assert udp.stats().evicted == 32 - 5
    for number in range(6):
        world.socket("127.0.0.3").send(b"%d" % number, port)
        server.receive()
    assert _counts(udp) == {CALLER: 3, "127.0.0.3": 3}, "and the greedy one gives way to others"


def test_a_peer_machine_is_more_than_one_caller(world: World) -> None:
    """It speaks for its containers, so a workload with more than its share of sessions gives way to it."""
    server = world.socket()
    udp, port = world.open(backend(server), limit=10)
    for host, number in ((PEER, 6), (CALLER, 12)):
        for _ in range(number):
            world.socket(host).send(b"?", port)
            server.receive()
    assert _counts(udp) == {PEER: 6, CALLER: 4}
    for _ in range(12):
        world.socket(PEER).send(b"?", port)
        server.receive()
    assert _counts(udp) == {PEER: 8, CALLER: 2}


def test_a_flood_of_clients_that_are_all_in_use_still_lets_new_ones_in(world: World) -> None:
    """Then the oldest goes, after a bounded search."""
    server = world.socket()
    udp, port = world.open(backend(server), limit=20)
    clients = [world.socket() for _ in range(30)]
    for client in clients:
        client.send(b"x", port)
        server.receive()
    assert udp.active == 20
    assert clients[-1].address in _clients(udp)


def _counts(udp: UdpListener) -> dict[str, int]:
    return {host: sum(own.counts) for host, own in udp._places.callers.items()}


def _clients(udp: UdpListener) -> set[tuple[str, int]]:
    return {session.client for session in udp._sessions.values()}


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 65507])
def test_datagrams_of_every_size_pass_whole(world: World, size: int) -> None:
    """Empty ones and the largest that UDP allows too, in both directions."""
    server, client = world.socket(), world.socket()
    _, port = world.open(backend(server))
    data = bytes(i % 251 for i in range(size))
    client.send(data, port)
    received, session = server.receive()
    assert received == data
    server.send(data, session)
    assert client.receive() == (data, port)


def test_a_burst_arrives_whole_and_in_order(world: World) -> None:
    """Datagrams queue in the kernel while the loop is busy, and none is lost or overtaken, in both directions."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server))
    burst = [b"%d" % i for i in range(500)]
    for data in burst:
        client.send(data, port)
    world.until(lambda: udp.stats().backends[0].bytes_in == sum(map(len, burst)))
    assert server.queued() == burst
    session = ("127.0.0.1", next(iter(udp._sessions.values())).sock.getsockname()[1])
    for data in burst:
        server.send(data, session)
    world.until(lambda: udp.stats().backends[0].bytes_out == sum(map(len, burst)))
    assert client.queued() == burst


def test_one_wake_up_does_a_bounded_amount_of_work(world: World) -> None:
    """A flood on one socket leaves the loop to the others after BATCH datagrams."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server))
    for _ in range(3 * BATCH):
        client.send(b"x", port)
    udp._port_socket.dense = True
    udp._port_socket.ready(IN)
    assert len(server.queued()) == BATCH
    (session,) = udp._sessions.values()
    for _ in range(3 * BATCH):
        server.send(b"y", ("127.0.0.1", session.sock.getsockname()[1]))
    session.dense = True
    session.ready(IN)
    assert len(client.queued()) == BATCH


def test_a_client_that_cannot_be_reached_harms_nobody(world: World) -> None:
    """A reply that cannot be sent is counted; the session and the others go on."""
    server, client = world.socket(), world.socket()
    udp, port = world.open(backend(server))
    client.send(b"1", port)
    _, session = server.receive()
    (kept,) = udp._sessions.values()
    kept.reply = [(0, 8, b"\x00\x00\x00\x00" + bytes((10, 255, 255, 1)) + bytes(4))]  # not an address of ours
    server.send(b"2", session)
    world.until(lambda: udp.stats().dropped == 1)
    assert udp.active == 1
