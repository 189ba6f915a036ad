from __future__ import annotations

import fcntl
import gc
import hashlib
import select
import socket
import struct
import threading
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from tcpworld import DEADLINE, World, backend_of, eventually, fill, is_reset, noise, read_all, reset

from appliance.dataplane.tcp import relay
from appliance.model.network import Backend

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = 8 << 20
SIOCOUTQNSD = 0x894B
"""From linux/sockios.h: bytes written to a socket and not sent yet."""
SIOCATMARK = 0x8905
"""From asm-generic/sockios.h."""


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


def test_who_does_not_read_is_counted_while_it_does_not(world: World) -> None:
    """The connection and the memory that it may take, of bulk and of messages alike."""
    client, server = world.pair()
    assert (world.stats().stuck, world.stats().stuck_bytes) == (0, 0)
    sent = fill(server)
    eventually(lambda: world.stats().stuck == 1)
    assert world.stats().stuck_bytes == world.context.shares.stuck > 1 << 16
    read_all(client, sent)
    eventually(lambda: world.stats().stuck == world.context.shares.stuck == 0)
    fill(server)
    eventually(lambda: world.stats().stuck == 1)
    reset(client)
    eventually(lambda: world.context.shares.stuck == 0)


def test_little_is_read_ahead_for_who_has_more_than_its_share(world: World) -> None:
    """Of bulk that begins then, and of bulk that is under way; all of it arrives, and later it is as before."""
    world.context.shares.room = 0
    backend = world.backend()
    listener = world.open(backend)

    def held() -> list[int]:
        return sorted(world.call(lambda: [pair.stuck for pair in listener.pairs]))

    first = world.dial()
    fill(world.accept(backend))
    eventually(lambda: held()[-1] > 1 << 17)
    second = world.dial()
    server = world.accept(backend)
    data = noise(LARGE, 1)
    sender = in_thread(server.sendall, data)
    eventually(lambda: all(held()))
    narrow = held()[0]
    assert narrow <= 4 << 16, "one read or splice, and a receive buffer of 64 KiB"
    reset(first)
    eventually(lambda: len(held()) == 1)
    world.context.shares.room = 1 << 30
    received = read_all(second, LARGE)
    sender.join(DEADLINE)
    assert received == data
    assert not any(world.call(lambda: [pair.backend.narrow for pair in listener.pairs]))


def test_the_newest_that_do_not_read_are_reset_when_memory_runs_short(world: World) -> None:
    """Those of the caller that holds most; others go on."""
    backend = world.backend()
    listener = world.open(backend, callers=("127.0.0.1", "127.0.0.5"))
    world.context.shares.most_stuck = 3 << 20
    modest = world.dial("127.0.0.5", buffer=1 << 12)
    world.accept(backend).send(bytes(1 << 18), socket.MSG_DONTWAIT)
    eventually(lambda: world.stats().stuck == 1)
    clients = []
    for _ in range(30):
        clients.append(world.dial())
        server = world.accept(backend)
        server.setblocking(False)
        with suppress(BlockingIOError, ConnectionResetError):
            while True:
                server.send(bytes(1 << 16))
        if world.stats().given_up:
            break
    eventually(lambda: world.context.shares.stuck <= 3 << 20)
    assert world.stats().given_up
    assert is_reset(clients[-1])
    assert world.call(lambda: [pair for pair in listener.pairs if pair.caller.host == "127.0.0.5"])
    modest.recv(1)


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


def urgent_of(sock: socket.socket) -> bytes:
    """Return the urgent byte that arrives next."""
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    assert poll.poll(DEADLINE * 1000), "no urgent byte came"
    return out_of_band(sock)


def out_of_band(sock: socket.socket) -> bytes:
    """Return the urgent byte that is there. With a timeout, Python would wait for an ordinary one first."""
    sock.setblocking(False)
    try:
        return sock.recv(1, socket.MSG_OOB)
    finally:
        sock.settimeout(DEADLINE)


def at_mark(sock: socket.socket) -> bool:
    """Whether what was read so far ends where the urgent byte stood."""
    return fcntl.ioctl(sock, SIOCATMARK, bytes(4)) != bytes(4)


def exchange(one: socket.socket, other: socket.socket, before: bytes, after: bytes, byte: bytes = b"!") -> None:
    """Send an urgent byte between ordinary ones, and find all of them in their places."""

    def send() -> None:
        one.sendall(before)
        one.send(byte, socket.MSG_OOB)
        one.sendall(after)

    sender = in_thread(send)
    assert read_all(other, len(before)) == before
    assert urgent_of(other) == byte
    assert at_mark(other)
    assert read_all(other, len(after)) == after
    sender.join()


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("before", [0, 5, relay.SMALL - 1, relay.SIZE, 100_000, 2 << 20])
@pytest.mark.parametrize("after", [0, 5, 300_000])
def test_an_urgent_byte_arrives_in_its_place(world: World, side: str, before: int, after: int) -> None:
    """Oracle's clients, Telnet, FTP and rlogin use it; in either direction, amid words and bulk, again and again."""
    client, server = world.pair()
    one, other = (client, server) if side == "client" else (server, client)
    for number in range(5):
        exchange(one, other, noise(before, number), noise(after, number + 5), b"%d" % number)
        other.sendall(b"thanks")
        assert one.recv(100) == b"thanks"
    eventually(lambda: world.call(lambda: world.context.pipes.lent) == 0)


@pytest.mark.parametrize("before", [0, 10, relay.SIZE, 300_000])
def test_an_urgent_byte_that_comes_all_at_once_with_the_end(world: World, before: int) -> None:
    """What is before it, behind it, and the end of the stream: the relay sees all of it together."""
    client, server = world.pair()
    data = noise(before, before)

    def send() -> None:
        client.sendall(data)
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after")
        client.shutdown(socket.SHUT_WR)

    world.call(send)
    assert read_all(server, before) == data
    assert urgent_of(server) == b"!"
    assert read_all(server) == b"after"
    server.send(b"?", socket.MSG_OOB)
    assert urgent_of(client) == b"?", "to a client that has finished"
    server.close()
    assert read_all(client) == b""
    eventually(world.idle)
    stats = world.stats().backends[0]
    assert (stats.bytes_in, stats.bytes_out) == (before + 6, 1)


def test_an_urgent_byte_is_not_the_end_of_a_stream(world: World) -> None:
    """To splice both look the same once the end has come: what is behind the byte is not lost."""
    client, server = world.pair()
    (pair,) = eventually(lambda: world.listeners[0].pairs)
    data = noise(2 << 20, 1)
    sender = in_thread(client.sendall, data)
    assert read_all(server, len(data)) == data
    sender.join()

    def an_event_too_late() -> None:
        assert pair.client.mode == relay.BULK
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after")
        client.shutdown(socket.SHUT_WR)
        pair.client.ready(relay.MESSAGE)

    world.call(an_event_too_late)
    assert urgent_of(server) == b"!"
    assert read_all(server) == b"after"


@pytest.mark.parametrize("before", [0, 10, relay.SIZE, 100_000, 300_000])
def test_an_urgent_byte_that_nobody_takes_stalls_nothing(world: World, before: int) -> None:
    """A receiver that does not ask for it gets what is around it, as over a plain connection."""
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


@pytest.mark.parametrize("bulk", [False, True], ids=["after messages", "after bulk"])
def test_an_urgent_byte_for_who_does_not_read(world: World, bulk: bool) -> None:
    """It waits for its turn behind all that waits, and comes in its place when the other side reads again."""
    client, server = world.pair()
    if bulk:
        sent = fill(client)
    else:
        client.setblocking(False)
        sent = 0
        pause = threading.Event()
        while not world.stats().stuck:
            with suppress(BlockingIOError):
                sent += client.send(bytes(1000))
        pause.wait(0.05)
        client.setblocking(True)
    client.settimeout(DEADLINE)

    def send() -> None:
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after")

    sender = in_thread(send)
    assert read_all(server, sent) == bytes(sent)
    assert urgent_of(server) == b"!"
    assert read_all(server, 5) == b"after"
    sender.join()
    assert world.stats().stuck == 0


def test_an_urgent_byte_is_itself_what_is_not_taken(world: World) -> None:
    """Kept as urgent until the other side has room for it."""
    client, server = world.pair()
    eventually(lambda: world.listeners[0].pairs)
    (pair,) = world.listeners[0].pairs
    full = Full(pair.backend.sock)

    def fill_up() -> None:
        pair.backend.sock = full

    world.call(fill_up)
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    eventually(lambda: world.stats().stuck == 1)
    assert full.refused == 1

    def make_room() -> None:
        pair.backend.sock = full.sock
        world.context.epoll.rearm(pair.backend.fd)

    world.call(make_room)
    assert urgent_of(server) == b"!"
    assert read_all(server, 5) == b"after"
    assert world.stats().stuck == 0


class Full:
    """A socket that takes nothing."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.refused = 0

    def send(self, data: bytes, flags: int) -> int:
        self.refused += 1
        raise BlockingIOError

    def __getattr__(self, name: str) -> object:
        return getattr(self.sock, name)


def test_of_several_urgent_bytes_the_last_is_urgent(world: World) -> None:
    """As over a plain connection to a reader that is late: those before it are ordinary, or gone."""
    client, server = world.pair()

    def send() -> None:
        client.send(b"a")
        for byte in (b"1", b"2", b"3"):
            client.send(byte, socket.MSG_OOB)
        client.send(b"z")

    for _ in range(20):
        world.call(send)
        ordinary = urgent = b""
        while not ordinary.endswith(b"z"):
            readable, _, exceptional = select.select([server], [], [server], DEADLINE)
            if exceptional:
                urgent += out_of_band(server)
            elif readable:
                ordinary += server.recv(1)
        assert ordinary.startswith(b"a")
        assert urgent.endswith(b"3")
        assert sorted(ordinary + urgent) == sorted(set(b"a3z") | set(ordinary + urgent)), "none comes twice"


def test_endless_urgent_bytes_hold_up_nobody(world: World) -> None:
    """A sender of nothing else takes its turns like all others, and its own words arrive behind them."""
    backend = world.backend()
    world.open(backend)
    hostile = world.dial()
    victim = world.accept(backend)
    client = world.dial()
    server = world.accept(backend)
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            hostile.send(b"!", socket.MSG_OOB)
        hostile.sendall(b"end")
        hostile.shutdown(socket.SHUT_WR)

    heard: list[bytes] = []
    sender, reader = in_thread(send), in_thread(lambda: heard.append(read_all(victim)))
    for number in range(500):
        client.sendall(b"ping %d" % number)
        assert server.recv(100) == b"ping %d" % number
        server.sendall(b"pong")
        assert client.recv(100) == b"pong"
    stop.set()
    sender.join(DEADLINE)
    reader.join(DEADLINE)
    assert heard[0].endswith(b"end")


def test_an_urgent_byte_crosses_two_proxies(world: World) -> None:
    """As between two machines, each with its own relay."""
    backend = world.backend()
    behind = world.open(backend)
    world.open(Backend(address=IPv4Address("127.0.0.1"), port=behind.port, local=True, label="next"))
    client = world.client()
    client.connect(("127.0.0.1", world.listeners[1].port))
    server = world.accept(backend)
    for before in (0, 5, 200_000):
        exchange(client, server, noise(before, 1), b"after")
        exchange(server, client, noise(before, 2), b"after")


def test_a_reset_behind_an_urgent_byte_goes_on(world: World) -> None:
    """It ends the other side too, whether or not the byte was still passed on."""
    client, server = world.pair()

    def all_at_once() -> None:
        client.send(b"!", socket.MSG_OOB)
        reset(client)

    world.call(all_at_once)
    assert is_reset(server)
    eventually(world.idle)


def test_an_urgent_byte_whose_place_never_comes(world: World) -> None:
    """It has overtaken a lost segment, and the connection breaks: nothing waits for that segment."""
    client, server = world.pair()
    (pair,) = eventually(lambda: world.listeners[0].pairs)
    world.call(pair.client.ready, relay.MESSAGE | relay.PRI)
    client.sendall(b"hello")
    assert server.recv(100) == b"hello"
    world.call(pair.client.ready, relay.MESSAGE | relay.PRI | relay.ERR | relay.HUP)
    assert is_reset(server)
    eventually(world.idle)


class Counted:
    """A socket, or an epoll set, whose system calls are counted."""

    def __init__(self, thing: Any, counts: dict[str, int]) -> None:
        self._thing = thing
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        if name in self._counts:
            self._counts[name] += 1
        return getattr(self._thing, name)


def test_a_message_costs_one_recv_and_one_send(world: World) -> None:
    """Before and after an urgent byte: who does not use them, or no longer, pays nothing for them."""
    counts = dict.fromkeys(("recv", "send", "fileno"), 0)  # an ioctl needs to know the number
    armed = {"modify": 0}
    client, server = world.pair()
    (pair,) = eventually(lambda: world.listeners[0].pairs)

    def watch() -> None:
        for end in (pair.client, pair.backend):
            end.sock = Counted(end.sock, counts)
        world.context.epoll._epoll = Counted(world.context.epoll._epoll, armed)

    world.call(watch)
    for _ in range(2):
        counts.update(dict.fromkeys(counts, 0))
        for _ in range(10):
            client.sendall(b"ping")
            assert server.recv(100) == b"ping"
            server.sendall(b"pong")
            assert client.recv(100) == b"pong"
        assert (counts, armed["modify"]) == ({"recv": 20, "send": 20, "fileno": 0}, 0)
        exchange(client, server, b"before", b"after")
        armed["modify"] = 0


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
