from __future__ import annotations

import errno
import os
import resource
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from tcpworld import (
    CALLER,
    PEER,
    STRANGER,
    World,
    backend_of,
    eventually,
    is_reset,
    listener_of,
    open_descriptors,
    read_all,
    refused_or_reset,
)

from appliance.dataplane.tcp.accept import ACCEPTS
from appliance.dataplane.tcp.listener import TcpListener

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    """A data plane in a thread; nothing may be left of it at the end."""
    made = World()
    yield made
    made.close()


def test_a_stranger_is_reset_at_once(world: World) -> None:
    """An address that is neither caller nor peer gets a reset, reaches no backend, and is counted."""
    backend = world.backend()
    world.open(backend)
    assert world.turned_away(STRANGER)
    stats = world.stats()
    assert (stats.accepted, stats.refused, stats.active) == (1, 1, 0)
    assert stats.backends[0].opened == 0


def test_peers_get_local_backends_only(world: World) -> None:
    """A connection that came from another machine never leaves this one again; a local caller may go anywhere."""
    here, there = world.backend(), world.backend()
    world.open(backend_of(here), backend_of(there, local=False))
    for _ in range(20):
        world.dial(PEER)
        world.accept(here)
    counts = {b.backend.local: b.opened for b in world.stats().backends}
    assert counts == {True: 20, False: 0}
    for _ in range(40):
        world.dial(CALLER)
    eventually(lambda: world.stats().active == 60)
    assert {b.backend.local: b.opened > 0 for b in world.stats().backends} == {True: True, False: True}
    assert next(b.opened for b in world.stats().backends if not b.backend.local) > 0


def test_a_peer_without_local_backends_is_reset(world: World) -> None:
    """A peer is not sent on to another peer, not even when nothing else is there."""
    world.open(backend_of(world.backend(), local=False))
    assert world.turned_away(PEER)
    assert world.stats().failed == 1


def test_a_swap_resets_who_may_no_longer_call(world: World) -> None:
    """Removing a caller ends its pairs with a reset; the pairs of others, and what is counted, stay."""
    backend = world.backend()
    world.open(backend)
    client = world.dial(CALLER)
    server = world.accept(backend)
    peer = world.dial(PEER)
    served = world.accept(backend)
    eventually(lambda: world.stats().active == 2)
    world.swap(backend, callers=(STRANGER,))
    assert is_reset(client)
    assert is_reset(server)
    peer.sendall(b"still here")
    assert read_all(served, 10) == b"still here"
    assert world.stats().backends[0].opened == 2
    assert world.turned_away()
    world.dial(STRANGER)
    world.accept(backend)


def test_a_renamed_caller_keeps_what_it_has(world: World) -> None:
    """Its address is another one, which may call as well; to one that may not, nobody is renamed."""
    backend = world.backend()
    listener = world.open(backend, callers=(CALLER, STRANGER))
    client = world.dial(CALLER)
    served = world.accept(backend)
    eventually(lambda: world.stats().active == 1)
    for key, after in (("127.0.0.99", CALLER), (STRANGER, STRANGER)):
        world.call(listener.rekey, CALLER, key)
        (connection,) = world.call(listener.connections)
        assert connection.client.partition(":")[0] == after
    world.swap(backend, callers=(STRANGER,))
    client.sendall(b"still here")
    assert read_all(served, 10) == b"still here"


def test_a_swap_ends_what_a_peer_may_not_have(world: World) -> None:
    """A caller that becomes a peer keeps its pairs to local backends and loses those to other machines."""
    here, there = world.backend(), world.backend()
    world.open(backend_of(there, local=False))
    far = world.dial()
    world.accept(there)
    eventually(lambda: world.stats().active == 1)
    world.swap(backend_of(here))
    near = world.dial()
    world.accept(here)
    eventually(lambda: world.stats().active == 2)
    world.swap(backend_of(here), backend_of(there, local=False), callers=(), peers=(CALLER,))
    assert is_reset(far)
    assert world.stats().active == 1
    near.close()


def test_pairs_to_a_vanished_backend_go_on(world: World) -> None:
    """A backend that left the list keeps its connections, marked as draining, and gets no new ones."""
    old, new = world.backend(), world.backend()
    listener = world.open(old)
    client = world.dial()
    server = world.accept(old)
    eventually(lambda: world.stats().active == 1)
    world.swap(new)
    client.sendall(b"go on")
    assert read_all(server, 5) == b"go on"
    assert [c.draining for c in world.call(listener.connections)] == [True]
    world.dial()
    world.accept(new)
    eventually(lambda: world.stats().active == 2)
    assert sorted(c.draining for c in world.call(listener.connections)) == [False, True]
    assert world.call(listener.pairs_to, IPv4Address("127.0.0.1")) == 2
    assert world.call(listener.pairs_to, IPv4Address("127.0.0.9")) == 0


def test_a_swap_keeps_the_counters_of_backends_that_stay(world: World) -> None:
    """What was counted for a backend survives the coming and going of others."""
    one, two = world.backend(), world.backend()
    world.open(one)
    world.dial()
    world.accept(one)
    eventually(lambda: world.stats().backends[0].opened == 1)
    world.swap(two, one)
    assert {b.backend.port: b.opened for b in world.stats().backends} == {
        one.getsockname()[1]: 1,
        two.getsockname()[1]: 0,
    }


def test_stop_serves_those_who_wait_and_refuses_the_next(world: World) -> None:
    """No client whose connection the kernel had already established is lost when a listener closes."""
    backend = world.backend()
    listener = world.open(backend)
    clients = [world.client() for _ in range(3 * ACCEPTS)]

    def connect_and_stop() -> None:
        # On the loop's own thread: nothing can be accepted in between.
        for client in clients:
            client.connect((CALLER, listener.port))
        listener.stop()

    world.call(connect_and_stop)
    with pytest.raises(ConnectionRefusedError):
        world.dial()
    for _ in clients:
        world.accept(backend).sendall(b"served")
    for client in clients:
        assert client.recv(10) == b"served"
    assert world.emptied == []
    assert world.stats().active == len(clients)
    assert all(c.draining for c in world.call(listener.connections))
    for client in clients:
        client.close()
    world.call(listener.end_pairs)
    assert world.emptied == [listener]


def test_an_idle_listener_is_empty_once_stopped(world: World) -> None:
    """Its owner hears of it at once, and only once."""
    listener = world.open(world.backend())
    world.call(listener.stop)
    world.call(listener.stop)
    assert world.emptied == [listener]


def test_a_port_is_free_again_while_old_pairs_drain(world: World) -> None:
    """A destination may be opened anew on its port although connections of the former listener go on."""
    backend = world.backend()
    listener = world.open(backend)
    client = world.dial()
    server = world.accept(backend)
    eventually(lambda: world.stats().active == 1)
    world.call(listener.stop)
    again = world.call(
        TcpListener, world.context, listener_of(listener.port, backend_of(backend)), on_empty=world.emptied.append
    )
    world.listeners.append(again)
    world.dial()
    world.accept(backend)
    client.sendall(b"old")
    assert read_all(server, 3) == b"old"
    assert world.call(lambda: again.accepted) == 1


def test_a_taken_port_is_an_error(world: World) -> None:
    """EADDRINUSE is raised to the caller, and nothing is left over."""
    taken = world.backend("0.0.0.0")
    before = open_descriptors()
    with pytest.raises(OSError, match="in use") as caught:
        world.call(TcpListener, world.context, listener_of(taken.getsockname()[1]), on_empty=print)
    assert caught.value.errno == errno.EADDRINUSE
    assert open_descriptors() == before


def test_out_of_file_descriptors_accepting_pauses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When accept fails for want of descriptors it is logged once, does not spin, and goes on when there are some."""
    monkeypatch.setattr("appliance.dataplane.tcp.accept.ACCEPT_PAUSE", 0.05)
    backend = world.backend()
    listener = world.open(backend)
    clients = [world.client() for _ in range(4)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        for client in clients:
            client.connect((CALLER, listener.port))
        eventually(lambda: listener.acceptor.starved >= 3)
        assert listener.accepted == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for _ in clients:
        world.accept(backend).sendall(b"at last")
    for client in clients:
        assert client.recv(10) == b"at last"
    assert [entry["event"] for entry in world.logs] == ["out of file descriptors; accepting pauses"]
    assert world.stats().starved == listener.acceptor.starved
    assert listener.acceptor.starved < 1000


def test_a_pause_is_a_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that wait while there are no file descriptors cost no CPU time."""
    monkeypatch.setattr("appliance.dataplane.tcp.accept.ACCEPT_PAUSE", 3600.0)
    backend = world.backend()
    listener = world.open(backend)
    client = world.client()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        client.connect((CALLER, listener.port))
        eventually(lambda: listener.acceptor.starved)
        for _ in range(50):
            world.call(lambda: None)
        assert listener.acceptor.starved == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    world.call(listener.stop)
    world.accept(backend).sendall(b"at last")
    assert client.recv(10) == b"at last"


def test_out_of_file_descriptors_for_the_backend_the_client_is_reset(world: World) -> None:
    """A client that was accepted with the last descriptor is not kept waiting, and its backend is not to blame."""
    backend = world.backend()
    listener = world.open(backend)
    clients = [world.client() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        for client in clients:
            assert refused_or_reset(client, listener.port)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stats = world.stats()
    assert (stats.failed, stats.starved, stats.backends[0].failed) == (3, 3, 0)
    assert [entry["event"] for entry in world.logs] == ["out of file descriptors; accepting pauses"]


def test_two_thousand_pairs_leave_no_file_descriptor(world: World) -> None:
    """Connections of every kind of ending, 2,000 in all, give back all that they took."""
    backend = world.backend(backlog=1024)
    world.open(backend)
    client = world.dial()
    world.accept(backend).close()
    client.close()
    eventually(world.idle)
    before = open_descriptors()
    for number in range(2000):
        client = socket.create_connection((CALLER, world.listeners[0].port))
        server, _ = backend.accept()
        one, other = (client, server) if number % 2 else (server, client)
        if number % 3 == 0:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif number % 3 == 1:
            one.sendall(b"x" * number)
        one.close()
        other.close()
    eventually(world.idle)
    assert open_descriptors() == before
    stats = world.stats()
    assert stats.accepted == 2001
    assert (stats.active, stats.backends[0].active) == (0, 0)
