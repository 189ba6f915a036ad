from __future__ import annotations

import fcntl
import gc
import hashlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from tcpworld import DEADLINE, World, backend_of, eventually, fill, is_reset, noise, read_all, reset

from appliance.dataplane.tcp import relay

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = 8 << 20
SIOCOUTQNSD = 0x894B
"""From linux/sockios.h: bytes written to a socket and not sent yet."""


@pytest.fixture
def world() -> Iterator[World]:
    """A data plane in a thread; nothing may be left of it at the end."""
    made = World()
    yield made
    made.close()


def in_thread(target, *args) -> threading.Thread:
    """Run a function beside the test."""
    thread = threading.Thread(target=target, args=args)
    thread.start()
    return thread


def test_messages_go_both_ways(world: World) -> None:
    """What one side says, the other hears, as often as they like."""
    client, server = world.pair()
    for number in range(50):
        client.sendall(b"ping %d" % number)
        assert server.recv(100) == b"ping %d" % number
        server.sendall(b"pong %d" % number)
        assert client.recv(100) == b"pong %d" % number


def test_the_server_may_speak_first(world: World) -> None:
    """A backend's greeting arrives although the client has said nothing."""
    client, server = world.pair()
    server.sendall(b"220 welcome\r\n")
    assert client.recv(100) == b"220 welcome\r\n"


def test_a_greeting_and_a_goodbye_at_once_arrive(world: World) -> None:
    """A backend that greets and hangs up at once is heard to the end, every time."""
    backend = world.backend()
    world.open(backend)

    def serve() -> None:
        for _ in range(50):
            sock = backend.accept()[0]
            sock.sendall(b"hello and goodbye")
            sock.close()

    server = in_thread(serve)
    for _ in range(50):
        client = world.dial()
        assert read_all(client) == b"hello and goodbye"
        client.close()
    server.join()
    eventually(world.idle)


def test_the_client_may_finish_first(world: World) -> None:
    """The client's end of stream arrives, and the answer still comes back, then the backend's end of stream."""
    client, server = world.pair()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"question"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"
    server.sendall(b", the end")
    server.shutdown(socket.SHUT_WR)
    assert read_all(client) == b", the end"
    eventually(world.idle)


def test_the_server_may_finish_first(world: World) -> None:
    """The backend's end of stream arrives while the client goes on sending."""
    client, server = world.pair()
    server.sendall(b"that is all")
    server.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"that is all"
    client.sendall(b"still ")
    assert read_all(server, 6) == b"still "
    client.sendall(b"here")
    client.close()
    assert read_all(server) == b"here"
    eventually(world.idle)


@pytest.mark.parametrize("after", [b"", b"words", bytes(1 << 20)], ids=["nothing", "a message", "bulk"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_goes_on_as_a_reset(world: World, side: str, after: bytes) -> None:
    """A side that resets is not mistaken for one that has finished, whatever it did before."""
    client, server = world.pair()
    one, other = (client, server) if side == "client" else (server, client)
    reader = in_thread(one.sendall, after)
    assert read_all(other, len(after)) == after
    reader.join()
    reset(one)
    assert is_reset(other)
    eventually(world.idle)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_after_the_end_of_stream_goes_on(world: World, side: str) -> None:
    """A side that finished and then resets resets the other too, although nothing reads from it any more."""
    client, server = world.pair()
    one, other = (client, server) if side == "client" else (server, client)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    reset(one)
    eventually(world.idle)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        other.sendall(b"?")


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_frees_what_the_other_side_does_not_read(world: World, side: str) -> None:
    """Bytes that the other side never takes do not keep a pair open whose sender was reset."""
    client, server = world.pair()
    one, other = (client, server) if side == "client" else (server, client)
    fill(one)
    assert world.call(lambda: world.context.pipes.lent) == 1
    reset(one)
    eventually(world.idle)
    assert is_reset(other)


@pytest.mark.parametrize("more", [b"", b"more"], ids=["silent", "still sending"])
def test_an_answer_before_a_reset_is_delivered(world: World, more: bytes) -> None:
    """A backend that answers without reading the request, and so resets, has its answer heard."""
    client, server = world.pair()
    client.sendall(b"x" * 1000)
    eventually(lambda: world.call(lambda: sum(p.client.moved for p in world.listeners[0].pairs)) == 1000)

    def all_at_once() -> None:
        # On the loop's own thread: it sees all of this together.
        client.send(more)
        server.send(b"413 too large")
        server.close()

    world.call(all_at_once)
    assert client.recv(100) == b"413 too large"
    assert is_reset(client)
    eventually(world.idle)


def test_large_streams_both_ways_at_once_with_slow_readers(world: World) -> None:
    """8 MB in each direction at the same time arrive unharmed although both readers dawdle."""
    client, server = world.pair()
    heard: dict[str, str] = {}

    def read_slowly(name: str, sock: socket.socket) -> None:
        digest = hashlib.sha256()
        pause = threading.Event()
        count = 0
        while part := sock.recv(100_000):
            digest.update(part)
            count += 1
            if count % 16 == 0:
                pause.wait(0.005)
        heard[name] = digest.hexdigest()

    def send(sock: socket.socket, seed: int) -> None:
        sock.sendall(noise(LARGE, seed))
        sock.shutdown(socket.SHUT_WR)

    threads = [
        in_thread(read_slowly, "client", client),
        in_thread(read_slowly, "server", server),
        in_thread(send, client, 1),
        in_thread(send, server, 2),
    ]
    for thread in threads:
        thread.join(DEADLINE)
    assert heard["server"] == hashlib.sha256(noise(LARGE, 1)).hexdigest()
    assert heard["client"] == hashlib.sha256(noise(LARGE, 2)).hexdigest()
    eventually(world.idle)
    stats = world.stats().backends[0]
    assert (stats.bytes_in, stats.bytes_out) == (LARGE, LARGE)


@pytest.mark.parametrize("splice", [relay.SPLICE_SIZE, 20_000], ids=["large", "small"])
def test_messages_after_bulk_after_messages(world: World, monkeypatch: pytest.MonkeyPatch, splice: int) -> None:
    """A connection may change between large and small as it likes, however often a stream has to stand back."""
    monkeypatch.setattr(relay, "SPLICE_SIZE", splice)
    client, server = world.pair()
    for size in (10, 3 << 20, 10, 100_000, 1, relay.SIZE, relay.SIZE + 1, 7, 2 << 20):
        data = noise(size, size)
        sender = in_thread(client.sendall, data)
        assert read_all(server, size) == data
        sender.join()
        server.sendall(b"thanks")
        assert client.recv(100) == b"thanks"
    assert world.call(lambda: world.context.pipes.lent) == 0


def test_a_slow_reader_stops_the_sender(world: World) -> None:
    """What is under way for a reader that reads nothing is bounded, and arrives when it reads."""
    client, server = world.pair()
    sent = fill(client)
    assert sent < 64 << 20
    eventually(lambda: world.call(lambda: world.context.pipes.lent) == 1)
    client.shutdown(socket.SHUT_WR)
    assert len(read_all(server)) == sent
    server.close()
    eventually(world.idle)
    assert world.context.pipes.lent == 0


@pytest.mark.parametrize("side", ["client", "server"])
def test_bulk_does_not_wait_in_the_kernel(world: World, side: str) -> None:
    """What a reader does not take yet is not queued up before it: else it is sent from two CPUs, out of order."""
    client, server = world.pair()
    one = client if side == "client" else server
    fill(one)
    (pair,) = world.listeners[0].pairs
    to = pair.backend if side == "client" else pair.client

    def unsent() -> int:
        return struct.unpack("i", fcntl.ioctl(to.sock, SIOCOUTQNSD, bytes(4)))[0]

    assert 0 < world.call(unsent) < 1 << 19


def test_a_reader_that_stops_between_messages_gets_all_of_them(world: World) -> None:
    """Messages that find the reader's window closed wait, and those after them too."""
    client, server = world.pair()
    words = b"".join(b"%09d\n" % number for number in range(400_000))
    sender = in_thread(lambda: [client.sendall(words[at : at + 1000]) for at in range(0, len(words), 1000)])
    threading.Event().wait(0.2)
    assert read_all(server, len(words)) == words
    sender.join()


def test_without_pipes_bulk_still_flows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no more file descriptors are to be had, large streams are copied instead."""
    client, server = world.pair()
    monkeypatch.setattr(world.context.pipes, "take", lambda: None)
    data = noise(LARGE, 3)
    sender = in_thread(client.sendall, data)
    threading.Event().wait(0.1)
    assert read_all(server, LARGE) == data
    sender.join()


def test_urgent_data_does_not_stall_the_stream(world: World) -> None:
    """Bytes around an urgent one arrive; the urgent one itself must be asked for by the receiver, which does not."""
    client, server = world.pair()
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    assert read_all(server, 11) == b"beforeafter"


@pytest.mark.parametrize("before", [10, relay.SIZE, 100_000, 300_000])
def test_urgent_data_does_not_stall_bulk(world: World, before: int) -> None:
    """An urgent byte amid a large stream is got past, wherever it is."""
    client, server = world.pair()
    data = noise(before + 300_000, before)

    def send() -> None:
        client.sendall(data[:before])
        client.send(b"!", socket.MSG_OOB)
        client.sendall(data[before:])

    world.call(send)
    assert read_all(server, len(data)) == data
    sender = in_thread(send)
    assert read_all(server, len(data)) == data
    sender.join()


class Broken:
    """A socket that does something unforeseen when it is read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv(self, size: int, flags: int) -> bytes:
        raise ZeroDivisionError

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_a_fault_in_a_handler_ends_only_its_own_pair(world: World) -> None:
    """An unforeseen error is logged and resets that connection; others go on."""
    world.faults_expected = True
    backend = world.backend()
    world.open(backend)
    one, two = world.dial(), world.dial()
    servers = [world.accept(backend), world.accept(backend)]
    eventually(lambda: len(world.listeners[0].pairs) == 2)
    (victim,) = [p for p in world.listeners[0].pairs if p.client.sock.getpeername() == one.getsockname()]
    victim.client.sock = Broken(victim.client.sock)
    one.shutdown(socket.SHUT_WR)
    assert is_reset(one)
    two.shutdown(socket.SHUT_WR)
    errors = [entry["event"] for entry in world.logs if entry["log_level"] == "error"]
    assert errors == ["a handler of the data plane failed; what it served ends"]
    for server in servers:
        server.close()
    assert read_all(two) == b""
    eventually(world.idle)


def test_bytes_are_counted_by_side(world: World) -> None:
    """An open pair's bytes show in its connection and in its backend's counters; a closed one's stay there."""
    backend = world.backend()
    listener = world.open(backend_of(backend, label="web-1"))
    client = world.dial()
    server = world.accept(backend)
    client.sendall(b"12345")
    assert read_all(server, 5) == b"12345"
    server.sendall(b"123")
    assert read_all(client, 3) == b"123"
    (connection,) = world.call(listener.connections)
    assert connection.client == f"127.0.0.1:{client.getsockname()[1]}"
    assert connection.backend == f"127.0.0.1:{backend.getsockname()[1]}"
    assert (connection.label, connection.bytes_in, connection.bytes_out) == ("web-1", 5, 3)
    assert not connection.draining
    assert connection.age >= 0
    stats = world.stats()
    assert (stats.accepted, stats.active) == (1, 1)
    assert (stats.backends[0].opened, stats.backends[0].active) == (1, 1)
    assert (stats.backends[0].bytes_in, stats.backends[0].bytes_out) == (5, 3)
    client.close()
    server.close()
    eventually(world.idle)
    stats = world.stats().backends[0]
    assert (stats.active, stats.bytes_in, stats.bytes_out) == (0, 5, 3)


def test_an_ended_pair_is_freed_without_the_garbage_collector(world: World) -> None:
    """Connections that come and go leave no work for a collector that would stop the traffic of all."""
    backend = world.backend()
    world.open(backend)
    gc.collect()
    gc.disable()
    try:
        for number in range(30):
            client = world.dial()
            server = world.accept(backend)
            client.sendall(bytes(number * 10_000))
            if number % 2:
                reset(server)
            client.close()
            server.close()
        eventually(world.idle)
        world.call(lambda: None)
        assert not [thing for thing in gc.get_objects() if isinstance(thing, relay.End | relay.Pair)]
    finally:
        gc.enable()


def test_neither_side_is_delayed_by_nagle(world: World) -> None:
    """TCP_NODELAY and keepalive are set towards the client and towards the backend."""
    world.pair()
    (pair,) = eventually(lambda: world.listeners[0].pairs)
    for end in (pair.client, pair.backend):
        assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
