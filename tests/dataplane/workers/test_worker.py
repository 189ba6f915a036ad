"""What a worker does with messages, here in the test's own process; test_pool.py has real ones."""

from __future__ import annotations

import asyncio
import gc
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from structlog.testing import capture_logs
from tcpworld import CALLER, DESTINATION, backend_of, free_port, listener_of

from appliance.dataplane import api
from appliance.dataplane.sockets import listen
from appliance.dataplane.workers import messages
from appliance.dataplane.workers.channel import Channel
from appliance.dataplane.workers.worker import Worker
from appliance.model.names import Destination
from appliance.model.network import Door, NetnsId

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 5.0
UDP = Destination.parse("web.shop:80/udp")
NETNS = NetnsId(device=4, inode=1)


class Parent:
    """A worker on a loop, and its parent's end of the channel on the same one."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        ours, theirs = socket.socketpair()
        self.worker = Worker(self.loop, theirs)
        self.said: list[Any] = []
        self.ended = False
        self.channel = Channel(self.loop, ours, take=lambda message, _: self.said.append(message), ended=self._end)
        self._number = 0
        self.channel.send(messages.Init(dns_port=free_port(), idle_udp=60.0, alone=False))

    def _end(self) -> None:
        self.ended = True

    def ask(self, question: api.Question[Any]) -> Any:
        """Return the worker's answer: it has done then what it was told before."""
        self._number += 1
        self.channel.send(messages.Ask(self._number, question))
        return self.wait(messages.Answer).value

    def wait(self, kind: type) -> Any:
        """Return the next message of a kind."""

        async def poll() -> Any:
            while True:
                for message in self.said:
                    if isinstance(message, kind):
                        self.said.remove(message)
                        return message
                await asyncio.sleep(0.001)

        return self.loop.run_until_complete(asyncio.wait_for(poll(), DEADLINE))

    def close(self) -> None:
        """End the worker as the end of its parent does."""
        self.channel.close()
        if self.worker.code == 0:
            self.loop.call_later(DEADLINE, self.loop.stop)
            self.loop.run_forever()  # the worker stops it
        self.loop.close()


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A worker that serves nothing yet."""
    made = Parent()
    yield made
    made.close()


def test_a_listener_is_served_swapped_and_closed(parent: Parent) -> None:
    """From the socket that comes along; a change of backends leaves its callers as they are."""
    backend = listen(0)[0]
    wanted = listener_of(free_port(), backend_of(backend))
    (sock,) = listen(wanted.port)
    parent.channel.send(messages.Serve(wanted, opened=True), (sock,))
    parent.channel.send(messages.SetBackends(DESTINATION, ()))
    (stats,) = parent.ask(api.STATS)
    assert (stats.destination, stats.port, stats.backends) == (DESTINATION, wanted.port, ())
    assert parent.worker._listeners[DESTINATION].callers == wanted.callers
    parent.channel.send(messages.Serve(wanted, opened=False))
    (stats,) = parent.ask(api.STATS)
    assert [counted.backend for counted in stats.backends] == list(wanted.backends)
    parent.channel.send(messages.Close(DESTINATION))
    assert parent.ask(api.STATS) == ()
    assert parent.worker._listeners == {}
    backend.close()
    sock.close()


def test_changes_of_what_it_does_not_serve_are_ignored(parent: Parent) -> None:
    """Its socket may not have arrived."""
    parent.channel.send(messages.SetBackends(DESTINATION, ()))
    parent.channel.send(messages.Serve(listener_of(20001), opened=False))
    assert parent.ask(api.STATS) == ()


def test_a_udp_listener_without_its_port_serves_doors_only(parent: Parent) -> None:
    """Another worker has the port."""
    port = free_port()
    wanted = listener_of(port)
    parent.channel.send(messages.Serve(type(wanted)(destination=UDP, port=port), opened=True, doors_only=True))
    (stats,) = parent.ask(api.STATS)
    assert stats.destination == UDP
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind((CALLER, port))


@pytest.mark.parametrize(
    ("message", "what", "slot"),
    [
        (messages.Serve(listener_of(20001), opened=True), DESTINATION, None),
        (messages.AcceptFor(DESTINATION, 1), DESTINATION, 1),
        (
            messages.ServeDoor(
                Door(netns=NETNS, caller=IPv4Address(CALLER), dialler=IPv4Address("240.0.0.0")), udp=False
            ),
            NETNS,
            None,
        ),
    ],
    ids=["listener", "acceptor", "door"],
)
def test_sockets_that_did_not_arrive_are_asked_for_again(
    parent: Parent, message: object, what: object, slot: int | None
) -> None:
    """There were no file descriptors for them; nothing is served by halves."""
    parent.channel.send(message)
    assert parent.wait(messages.Missing) == messages.Missing(what, slot)
    assert parent.ask(api.STATS) == ()


def test_what_fails_unforeseen_ends_the_worker(parent: Parent) -> None:
    """The next one begins with everything that must be served; the log says what failed."""
    with capture_logs() as logs:
        parent.channel.send(messages.Close(None))  # type: ignore[arg-type]
        parent.channel.send(messages.EndPairs(DESTINATION))
        parent.channel.send(messages.ServeDns(frozenset(), IPv4Address(CALLER)))
        parent.loop.call_later(DEADLINE, parent.loop.stop)
        parent.loop.run_forever()  # the worker stops it
    assert parent.worker.code == 1
    assert [(entry["event"], entry["received"]) for entry in logs] == [
        ("a worker of the data plane failed, and ends", "ServeDns")
    ]
    parent.worker.plane.close()


def test_once_all_is_said_nothing_of_it_is_collected_again(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that goes through all listeners would hold up traffic."""
    done: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(gc, "freeze", lambda: done.append("freeze"))
    parent.channel.send(messages.Ready())
    assert parent.ask(api.LEFT) == 0
    assert done == ["collect", "freeze"]
