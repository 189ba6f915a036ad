from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from tcpworld import PEER, World, backend_of, eventually, is_reset

from appliance.dataplane.tcp import dial
from appliance.model.network import Backend

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    """A data plane in a thread; nothing may be left of it at the end."""
    made = World()
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up dials soon."""
    monkeypatch.setattr(dial, "TIMEOUT", 0.1)
    monkeypatch.setattr(dial, "SWEEP", 0.02)


def silent(world: World) -> socket.socket:
    """Return a backend whose queue is full, so that connecting to it gets no answer."""
    backend = world.backend(backlog=0)
    world.keep(socket.create_connection(backend.getsockname()))
    return backend


def test_a_dead_backend_is_passed_over(world: World) -> None:
    """No client notices that one of two backends refuses, and the dead one is left out after its first failure."""
    backend = world.backend()
    world.open(world.dead(), backend)
    for _ in range(20):
        client = world.dial()
        server = world.accept(backend)
        server.sendall(b"hello")
        assert client.recv(10) == b"hello"
        client.close()
        server.close()
    stats = world.stats()
    dead, live = sorted(stats.backends, key=lambda b: b.opened)
    assert live.opened == 20
    assert dead.opened == 0
    assert dead.failed <= 2
    assert stats.failed == 0
    assert [entry["event"] for entry in world.logs].count("backend left out for a while") <= 1


@pytest.mark.parametrize("port", [99999, -1, pytest.param(10**400, id="huge")])
def test_an_address_that_no_socket_takes_is_passed_over(world: World, port: int) -> None:
    """Whatever goes wrong with one backend, the other one serves."""
    backend = world.backend()
    bad = Backend(address=IPv4Address("127.0.0.9"), port=port, local=True, label="bad")
    world.open(bad, backend_of(backend))
    for _ in range(8):
        client = world.dial()
        server = world.accept(backend)
        server.sendall(b"hello")
        assert client.recv(10) == b"hello"
        client.close()
        server.close()
    assert world.stats().failed == 0


def test_a_backend_is_dialled_from_the_address_that_it_lets_in(world: World) -> None:
    """Of several addresses of this host the one that others know is used; if it is gone, another backend serves."""
    backend, other = world.backend(), world.backend()
    world.open(replace(backend_of(backend), source=IPv4Address("127.0.0.9")))
    world.dial()
    assert world.accept(backend).getpeername()[0] == "127.0.0.9"
    world.swap(replace(backend_of(backend), source=IPv4Address("192.0.2.1"), weight=1000), other)
    world.dial()
    assert world.accept(other).getpeername()[0] == "127.0.0.1"


def test_want_of_ports_is_no_backends_failure(world: World) -> None:
    """A host that has nothing to dial from, as when all its ports are in use, leaves out no backend for that."""
    backend = world.backend()
    world.open(replace(backend_of(backend), source=IPv4Address("192.0.2.1")))
    for _ in range(3):
        assert world.turned_away()
    stats = world.stats()
    assert stats.failed == 3
    assert [(b.failed, b.ejected) for b in stats.backends] == [(0, 0)]
    (entry,) = world.logs
    assert entry["event"] == "no address and port to dial a backend from"
    assert "assign requested address" in entry["cause"]
    world.swap(backend)
    world.dial()
    world.accept(backend)


def test_at_most_three_backends_are_tried(world: World) -> None:
    """A client whose backends all refuse is reset after three of them, and counted once."""
    world.open(*(world.dead() for _ in range(5)))
    assert world.turned_away()
    stats = world.stats()
    assert sum(backend.failed for backend in stats.backends) == 3
    assert stats.failed == 1
    assert stats.active == 0


def test_without_backends_the_client_is_reset(world: World) -> None:
    """A destination that nothing serves at present refuses, and does so at once."""
    world.open()
    assert world.turned_away()
    assert world.stats().failed == 1


def test_a_backend_that_comes_back_serves_again(world: World) -> None:
    """Even one that is left out is tried when there is no other."""
    backend = world.backend()
    gone = backend_of(backend)
    world.open(gone)
    backend.close()
    assert world.turned_away()
    back = world.keep(socket.socket())
    back.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    back.bind((str(gone.address), gone.port))
    back.listen()
    client = world.dial()
    world.accept(back).sendall(b"here again")
    assert client.recv(20) == b"here again"
    assert world.stats().backends[0].ejected == 0


@pytest.mark.usefixtures("impatient")
def test_a_backend_that_does_not_answer_is_given_up(world: World) -> None:
    """After the time limit another backend gets the client."""
    backend = world.backend()
    mute = silent(world)
    world.open(mute, backend)
    for _ in range(8):
        client = world.dial()
        world.accept(backend).sendall(b"hello")
        assert client.recv(10) == b"hello"
    port = mute.getsockname()[1]
    stats = {b.backend.port: b for b in world.stats().backends}
    assert stats[port].opened == 0


def paused(sock: socket.socket) -> Backend:
    """The same while its program stands still."""
    return replace(backend_of(sock), paused=True)


def drain(backend: socket.socket) -> None:
    """Accept what the queue is full of, as the program does once it runs again."""
    backend.accept()[0].close()


@pytest.mark.usefixtures("impatient")
def test_clients_of_a_paused_program_wait(world: World) -> None:
    """Longer than for any other, also once its queue is full; they are served when it goes on."""
    mute = silent(world)
    world.open(paused(mute))
    clients = [world.dial() for _ in range(3)]
    eventually(lambda: len(world.context.dials) == 3)
    eventually(lambda: all(one.patient for one in list(world.context.dials._dials)))
    drain(mute)
    mute.listen(16)
    world.swap(mute)
    for _ in clients:
        world.accept(mute).sendall(b"here again")
    assert [client.recv(20) for client in clients] == [b"here again"] * 3
    (counted,) = world.stats().backends
    assert (counted.failed, counted.ejected) == (0, 0)


@pytest.mark.usefixtures("impatient")
def test_another_replica_takes_over_from_a_paused_one(world: World) -> None:
    """Also those that wait already; when the paused one has gone instead, they wait no longer."""
    mute, backend = silent(world), world.backend()
    world.open(paused(mute))
    client = world.dial()
    eventually(lambda: [one.patient for one in list(world.context.dials._dials)] == [True])
    world.swap(paused(mute), backend)
    world.accept(backend).sendall(b"hello")
    assert client.recv(10) == b"hello"
    world.swap(paused(mute))
    client = world.dial()
    eventually(lambda: [one.patient for one in list(world.context.dials._dials)] == [True])
    world.swap()
    assert is_reset(client)


def test_a_port_that_opens_on_demand_is_dialled_at_once(world: World) -> None:
    """It may refuse, which says nothing of the next time: it is neither left out nor told of."""
    backend = world.backend()
    port = replace(backend_of(backend), on_demand=True)
    backend.close()
    world.open(port)
    for _ in range(3):
        assert world.turned_away()
    back = world.keep(socket.socket())
    back.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    back.bind((str(port.address), port.port))
    back.listen()
    client = world.dial()
    world.accept(back).sendall(b"data")
    assert client.recv(20) == b"data"
    (counted,) = world.stats().backends
    assert (counted.failed, counted.opened, counted.ejected) == (3, 1, 0)
    assert not [entry for entry in world.logs if entry["event"] == "backend left out for a while"]


@pytest.mark.usefixtures("impatient")
def test_backends_that_do_not_answer_end_in_a_reset(world: World) -> None:
    """A client waits no longer than the time limit for each backend."""
    world.open(silent(world), silent(world))
    client = world.dial()
    assert is_reset(client)
    assert world.stats().failed == 1
    assert len(world.context.dials) == 0


def test_a_client_that_waits_is_active_and_can_be_ended(world: World) -> None:
    """Dials under way count as active, and end with the listener's pairs."""
    listener = world.open(silent(world))
    client = world.dial()
    eventually(lambda: world.call(lambda: listener.active) == 1)
    world.call(listener.stop)
    assert world.emptied == []
    world.call(listener.end_pairs)
    assert is_reset(client)
    assert world.emptied == [listener]


def test_a_client_that_waits_and_may_no_longer_call_is_reset(world: World) -> None:
    """A swap ends the dials of callers that it removes, and of no others."""
    mute = silent(world)
    world.open(mute)
    client, peer = world.dial(), world.dial(PEER)
    eventually(lambda: len(world.context.dials) == 2)
    world.swap(mute, callers=())
    assert is_reset(client)
    assert len(world.context.dials) == 1
    peer.close()


def test_a_client_that_left_while_waiting_leaves_nothing(world: World) -> None:
    """A client that resets before its backend has accepted costs no more than that connection."""
    backend = world.backend()
    world.open(backend)
    for _ in range(20):
        client = world.dial()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    eventually(lambda: world.stats().accepted == 20)
    eventually(world.idle)
    assert world.stats().failed == 0
