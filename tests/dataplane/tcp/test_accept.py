"""Accepting; what is done with the clients is in test_listener.py and test_door.py."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
from tcpworld import CALLER, World, eventually

from appliance.dataplane.access import Caller
from appliance.dataplane.holding import CalledHolding
from appliance.dataplane.sockets import listen
from appliance.dataplane.standstill import Standstill
from appliance.dataplane.tcp.accept import ACCEPTS, Acceptor

if TYPE_CHECKING:
    from collections.abc import Iterator


class AcceptorWorld(World):
    """The world of the TCP tests with an acceptor that takes every client, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []
        self.most = 10**9
        (sock,) = listen(0)
        self.port = sock.getsockname()[1]
        self.acceptor: Acceptor = self.call(Acceptor, self.context, "test", sock, self._take)

    def _take(self, client: socket.socket, host: str) -> bool:
        self.taken.append(host)
        self.keep(client)
        return len(self.taken) < self.most

    def connect(self, number: int = 1, port: int = 0) -> list[socket.socket]:
        """Return clients that the kernel has let in."""
        clients = [self.client() for _ in range(number)]
        for client in clients:
            client.connect((CALLER, port or self.port))
        return clients

    def _end(self) -> None:
        self.acceptor.stop()
        super()._end()


@pytest.fixture
def world() -> Iterator[AcceptorWorld]:
    """An acceptor in a thread; nothing may be left of it at the end."""
    made = AcceptorWorld()
    yield made
    made.close()


def test_every_client_is_taken_with_its_address(world: AcceptorWorld) -> None:
    """Also if more clients wait than are accepted at a time."""
    world.connect(2 * ACCEPTS + 1)
    eventually(lambda: world.taken == [CALLER] * (2 * ACCEPTS + 1))


@pytest.mark.parametrize("only", [CALLER, "127.0.0.9"])
def test_a_door_whose_workload_gives_way_accepts_slowly(world: AcceptorWorld, only: str) -> None:
    """Its clients wait instead of being reset one by one; those of another door are taken at once."""
    shares = world.context.shares
    held = [CalledHolding(lambda: None, lambda: 0) for _ in range(100)]

    def crowd() -> None:
        for one in held:
            shares.add(one, Caller(CALLER, local_only=False), "web")
        shares.cap = 1
        world.acceptor.only = only

    world.call(crowd)
    world.connect(10)
    if only == CALLER:
        eventually(lambda: world.call(lambda: world.acceptor.pausing))
        assert 0 < len(world.taken) < 10
    else:
        eventually(lambda: len(world.taken) == 10)
        assert not world.call(lambda: world.acceptor.pausing)
    world.call(lambda: [shares.remove(one) for one in held])
    eventually(lambda: len(world.taken) == 10)


def test_a_pause_ends_by_itself(world: AcceptorWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that waited meanwhile are taken then."""
    monkeypatch.setattr("appliance.dataplane.tcp.accept.ACCEPT_PAUSE", 0.05)

    def pause_and_connect() -> bool:
        # On the loop's own thread: nothing can be accepted in between.
        world.acceptor.pause()
        world.connect()
        return world.acceptor.pausing

    assert world.call(pause_and_connect)
    assert world.acceptor.starved == 0
    eventually(lambda: world.taken == [CALLER])
    assert not world.call(lambda: world.acceptor.pausing)


def test_want_of_descriptors_is_logged_once_until_it_is_over(world: AcceptorWorld) -> None:
    """Every pause counts."""
    error = OSError(errno.EMFILE, "Too many open files")
    for _ in range(3):
        world.call(world.acceptor.on_no_descriptors, error)
    assert world.acceptor.starved == 3
    assert [(entry["event"], entry["destination"]) for entry in world.logs] == [
        ("out of file descriptors; accepting pauses", "test")
    ]
    world.acceptor.starving = False
    world.call(world.acceptor.on_no_descriptors, error)
    assert len(world.logs) == 2


def test_it_accepts_for_another_worker_until_told_otherwise(world: AcceptorWorld) -> None:
    """That worker's socket stays open in it: new clients wait for it again."""
    (theirs,) = listen(0)
    port = theirs.getsockname()[1]
    ours = socket.socket(fileno=theirs.detach())
    world.keep(ours)
    for _ in range(2):
        world.call(world.acceptor.accept_for, 1, socket.SocketType(fileno=ours.dup().detach()))
    world.connect(3, port)
    eventually(lambda: len(world.taken) == 3)
    world.call(world.acceptor.stop_accepting_for, 1)
    world.call(world.acceptor.stop_accepting_for, 1)
    world.connect(2, port)
    world.connect(1)
    eventually(lambda: len(world.taken) == 4)
    ours.setblocking(True)
    for _ in range(2):
        world.keep(ours.accept()[0])


def test_stop_takes_those_who_wait_and_closes_every_socket(world: AcceptorWorld) -> None:
    """Also during a pause. Stopping twice does no harm."""
    (theirs,) = listen(0)
    port = theirs.getsockname()[1]
    world.call(world.acceptor.accept_for, 0, theirs)
    world.call(world.acceptor.pause)
    world.connect(2)
    world.connect(2, port)
    world.call(world.acceptor.stop)
    world.call(world.acceptor.stop)
    assert len(world.taken) == 4
    for each in (world.port, port):
        with pytest.raises(ConnectionRefusedError):
            world.connect(1, each)


def test_a_client_that_is_the_last_for_now_ends_the_batch(world: AcceptorWorld) -> None:
    """`take` says so; the socket is reported again."""
    world.most = 0
    world.connect(3)
    eventually(lambda: len(world.taken) == 3)


def test_clients_wait_while_it_is_not_known_whose_addresses_are_whose(
    world: AcceptorWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken once it is; an acceptor that knows its clients by their namespace does not ask."""
    monkeypatch.setattr("appliance.dataplane.tcp.accept.ACCEPT_PAUSE", 0.02)
    monkeypatch.setattr("appliance.dataplane.standstill.LIMIT", -1.0)
    word = Standstill()
    word.confirm()
    (sock,) = listen(0)
    port = sock.getsockname()[1]
    taken: list[str] = []

    def take(client: socket.socket, host: str) -> bool:
        taken.append(host)
        world.keep(client)
        return True

    acceptor = world.call(Acceptor, world.context, "host", sock, take, standstill=word)
    world.connect(port=port)
    eventually(lambda: acceptor.pausing)
    world.connect()
    eventually(lambda: world.taken == [CALLER])
    assert taken == []
    monkeypatch.setattr("appliance.dataplane.standstill.LIMIT", 60.0)
    eventually(lambda: taken == [CALLER])
    world.call(acceptor.stop)
