"""One session's datagrams; test_listener.py has how sessions come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance.dataplane.loop.epoll import IN
from appliance.dataplane.udp.batch import BATCH
from appliance.dataplane.udp.session import NO_CONTROL, Session
from appliance.dataplane.udp.sockets import connect
from tests.dataplane.udpworld import Socket, World, backend

if TYPE_CHECKING:
    from collections.abc import Iterator


class SessionWorld(World):
    """The world of the UDP tests with one session, whose client has asked once."""

    def __init__(self) -> None:
        super().__init__()
        self.server, self.client = self.socket(), self.socket()
        self.listener, to = self.open(backend(self.server))
        self.client.send(b"question", to)
        self.server.receive()
        (self.session,) = self.listener._sessions.values()

    def answer(self, number: int = 1) -> None:
        """Have the backend answer, and nothing read of it yet."""
        for _ in range(number):
            self.server.send(b"!", self.session.sock.getsockname())


@pytest.fixture
def world() -> Iterator[SessionWorld]:
    """A session."""
    made = SessionWorld()
    yield made
    made.close()
    assert not made.errors


def sister(session: Session, server: Socket) -> Session:
    """Return another session for the same client."""
    sock = connect(server.address)
    return Session(session.owner, session.key, session.client, session.caller, sock, session.state)


def test_sparse_answers_are_read_one_by_one(world: SessionWorld) -> None:
    """Dense ones up to BATCH a wake-up; the rest is reported again."""
    session = world.session
    world.answer(BATCH + 2)
    session.ready(IN)
    assert (session.bytes_out, session.dense) == (1, False)
    session.dense = True
    session.ready(IN)
    assert (session.bytes_out, session.dense) == (1 + BATCH, True)
    session.ready(IN)
    assert (session.bytes_out, session.dense) == (2 + BATCH, False)
    assert session.state.bytes_out == session.bytes_out == len(world.client.queued())


def test_an_answer_shows_that_client_and_backend_are_there(world: SessionWorld) -> None:
    """The backend is in again, and the session is not idle."""
    world.listener.balancer.failed(world.session.state)
    world.session.quiet = 3
    world.answer()
    world.session.ready(IN)
    assert (world.session.state.failures, world.session.quiet) == (0, 0)


def test_an_answer_that_no_socket_can_carry_is_dropped(world: SessionWorld) -> None:
    """The session does not know yet where its client asked; the answer is counted."""
    world.session.arrival = None
    world.answer()
    world.session.ready(IN)
    assert world.listener.dropped == 1
    assert world.client.queued() == []


def test_a_refused_datagram_is_reported(world: SessionWorld) -> None:
    """The listener leaves the backend out, and ends the session."""
    world.server.close()
    world.session.sock.send(b"?")
    world.session.ready(IN)
    assert world.listener.active == 0
    assert (world.session.state.failures, world.session.state.active) == (1, 0)


def test_a_session_that_takes_over_answers_where_the_former_one_did(world: SessionWorld) -> None:
    """From the socket, and with the control data, of the client's last datagram."""
    other = sister(world.session, world.server)
    assert (other.arrival, other.asked, other.reply) == (None, NO_CONTROL, NO_CONTROL)
    other.take_over(world.session)
    assert other.arrival is world.session.arrival is not None
    assert (other.asked, other.reply) == (world.session.asked, world.session.reply)
    assert not other.asked_again
    other.sock.close()


def test_an_error_in_the_handler_ends_the_session(world: SessionWorld) -> None:
    """And only that."""
    world.session.fail()
    assert world.listener.active == 0
