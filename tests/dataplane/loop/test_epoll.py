from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from structlog.testing import capture_logs

from appliance.dataplane.loop import epoll
from appliance.dataplane.loop.epoll import EpollSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Recorder:
    """A handler that notes what it is told, and does what it was asked to do then."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.events: list[int] = []
        self.failed = False
        self._then = then

    def ready(self, events: int) -> None:
        """Note."""
        self.events.append(events)
        self._then()

    def fail(self) -> None:
        """Note."""
        self.failed = True


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A uvloop."""
    made = uvloop.new_event_loop()
    yield made
    made.close()


@pytest.fixture(params=["few", "many"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any set be taken for a small one, or for a large one."""
    monkeypatch.setattr(epoll, "MANY", {"few": 10**9, "many": 0}[request.param])


def nested() -> set[tuple[str, str]]:
    """Return which epoll set of this process holds which other one (proc_pid_fdinfo(5)), by file descriptors."""
    sets = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which the folder is read
            if "eventpoll" in str(each.readlink()):
                sets.add(each.name)
    lines = ((name, line) for name in sets for line in Path("/proc/self/fdinfo", name).read_text().splitlines())
    held = {(name, line.split()[1]) for name, line in lines if line.startswith("tfd:")}
    return {(outer, inner) for outer, inner in held if inner in sets}


def pair() -> tuple[socket.SocketType, socket.SocketType]:
    """Return two joined sockets."""
    one, two = socket.socketpair()
    return (
        socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, one.detach()),
        socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, two.detach()),
    )


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop handle what is ready."""
    loop.run_until_complete(asyncio.sleep(0.02))


def test_events_are_reported_once_until_something_new(loop: asyncio.AbstractEventLoop) -> None:
    """Sockets are edge-triggered, and `rearm` asks for the same once more."""
    polls = EpollSet(loop)
    one, two = pair()
    seen = Recorder()
    polls.add(one.fileno(), seen)
    two.send(b"x")
    turn(loop)
    assert len(seen.events) == 1
    assert seen.events[0] & epoll.IN
    turn(loop)
    assert len(seen.events) == 1
    polls.rearm(one.fileno())
    turn(loop)
    assert len(seen.events) == 2
    polls.close(one)
    polls.close(two)
    polls.shut()


def test_a_socket_closed_in_a_batch_gets_no_more_events_and_its_number_is_not_reused(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Of two sockets in one batch the first closes the other: that one hears nothing, nor does its number."""
    polls = EpollSet(loop)
    one, two = pair()
    three, four = pair()
    numbers: list[int] = []

    def close_other(other: socket.SocketType) -> Callable[[], None]:
        def close() -> None:
            taken = other.fileno()
            polls.close(other)
            fresh = socket.socket()
            numbers.extend((taken, fresh.fileno()))
            fresh.close()

        return close

    first, second = Recorder(close_other(three)), Recorder(close_other(one))
    polls.add(one.fileno(), first)
    polls.add(three.fileno(), second)
    turn(loop)
    assert len(first.events) + len(second.events) == 1
    assert numbers[0] != numbers[1]
    assert sorted((one.fileno() == -1, three.fileno() == -1)) == [False, True]
    for sock in (one, two, three, four):
        sock.close()
    polls.shut()


def test_a_handler_that_raises_is_told_and_others_go_on(loop: asyncio.AbstractEventLoop) -> None:
    """No exception reaches the loop; the handler that raised is asked to give up."""
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    polls = EpollSet(loop)
    one, two = pair()
    bad, good = Recorder(lambda: 1 / 0), Recorder()
    with capture_logs() as logs:
        polls.add(one.fileno(), bad)
        polls.add(two.fileno(), good)
        turn(loop)
    assert bad.failed
    assert good.events
    assert not errors
    assert [entry["event"] for entry in logs] == ["a handler of the data plane failed; what it served ends"]
    polls.close(one)
    polls.close(two)
    polls.shut()


def test_outside_a_batch_sockets_close_at_once(loop: asyncio.AbstractEventLoop) -> None:
    """Timers and the control plane need not wait for traffic to release what they end."""
    polls = EpollSet(loop)
    one, two = pair()
    polls.add(one.fileno(), Recorder())
    polls.close(one)
    assert one.fileno() == -1
    assert not polls.handlers
    two.close()
    polls.shut()


@pytest.mark.usefixtures("size")
def test_traffic_without_end_keeps_nobody_else_waiting(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While each event brings the next one, the loop's timers, callbacks, readers and other threads have their turn."""
    monkeypatch.setattr(epoll, "STAY", 100)
    polls = EpollSet(loop)
    one, two = pair()
    three, four = pair()

    def echo() -> None:
        with suppress(BlockingIOError):
            two.send(one.recv(9, socket.MSG_DONTWAIT))

    seen = Recorder(echo)
    polls.add(one.fileno(), seen)
    two.send(b"x")

    async def others() -> int:
        told = asyncio.Event()
        await asyncio.sleep(0.01)
        loop.call_soon(told.set)
        await told.wait()
        told.clear()
        loop.add_reader(three.fileno(), lambda: three.recv(9) and told.set())
        thread = threading.Thread(target=four.send, args=(b"y",))
        thread.start()
        await told.wait()
        await loop.run_in_executor(None, thread.join)
        return len(seen.events)

    events = loop.run_until_complete(asyncio.wait_for(others(), 5))
    assert events > 10
    loop.remove_reader(three.fileno())
    for sock in (one, two):
        polls.close(sock)
    for sock in (three, four):
        sock.close()
    turn(loop)
    polls.shut()


@pytest.mark.usefixtures("size")
def test_after_a_pause_events_are_noticed_as_before(loop: asyncio.AbstractEventLoop) -> None:
    """The set is left to the loop's own waiting once nothing comes, and comes back from there, again and again."""
    polls = EpollSet(loop)
    one, two = pair()
    seen = Recorder(lambda: one.recv(9))
    polls.add(one.fileno(), seen)
    for number in range(5):
        two.send(b"x")
        turn(loop)
        assert len(seen.events) == number + 1
    polls.close(one)
    polls.close(two)
    polls.shut()


def test_traffic_among_many_sockets_puts_no_set_into_another_one(loop: asyncio.AbstractEventLoop) -> None:
    """The kernel would look at each of the sockets, and that again and again."""
    polls = EpollSet(loop)
    idle = [sock for _ in range(epoll.MANY // 2) for sock in pair()]
    for sock in idle:
        polls.add(sock.fileno(), Recorder())
    one, two = pair()
    held: list[set[tuple[str, str]]] = []
    done = asyncio.Event()

    def echo() -> None:
        one.recv(9)
        held.append(nested())
        if len(held) < 5:
            two.send(b"x")
        else:
            loop.call_soon(done.set)

    polls.add(one.fileno(), Recorder(echo), epoll.IN)
    turn(loop)
    before = nested()
    two.send(b"x")
    loop.run_until_complete(asyncio.wait_for(done.wait(), 5))
    assert held == [before] * 5
    for sock in (*idle, one, two):
        polls.close(sock)
    polls.shut()


@pytest.mark.usefixtures("size")
def test_the_loop_has_its_turn_soon_when_traffic_ends(loop: asyncio.AbstractEventLoop) -> None:
    """What a handler asks of the loop is done without another event, and then the set rests."""
    polls = EpollSet(loop)
    one, two = pair()

    async def asked() -> None:
        told = asyncio.Event()
        seen = Recorder(lambda: one.recv(9) and echo())

        def echo() -> None:
            if len(seen.events) < 3:
                two.send(b"x")
            else:
                loop.call_later(0.001, told.set)

        polls.add(one.fileno(), seen, epoll.IN)
        two.send(b"x")
        await asyncio.wait_for(told.wait(), 5)

    loop.run_until_complete(asked())
    polls.close(one)
    polls.close(two)
    polls.shut()
