"""DNS over TCP: framing, order, and what one asker can hold."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from appliance.dataplane.dns import tcp as module
from appliance.dataplane.dns.tcp import DnsTcpListener, TcpLimits
from tests.dataplane.dnsworld import DEADLINE, connect, framed, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Send = Callable[[bytes], None]


def echo(data: bytes, asker: str, send: Send, _forward: object) -> None:
    """Answer with the question."""
    send(data)


class Serving:
    """A listener on a port of its own."""

    def __init__(self, handle: module.Handler) -> None:
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(64)
        self.sock.setblocking(False)
        self.server = self.sock.getsockname()
        self.limits = TcpLimits()
        self.listener = DnsTcpListener(asyncio.get_running_loop(), self.sock, self.limits, handle)


@asynccontextmanager
async def serving(handle: module.Handler) -> AsyncIterator[Serving]:
    """Serve, and check at the end that nothing is left."""
    world = Serving(handle)
    try:
        yield world
    finally:
        world.listener.close()
    assert not world.listener.connections
    assert world.limits._total == 0
    assert not world.limits._by_asker


async def read(reader: asyncio.StreamReader) -> bytes:
    """Read one framed message."""
    async with asyncio.timeout(DEADLINE):
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of the connection; whether it came without another byte."""
    async with asyncio.timeout(DEADLINE):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


def test_several_questions_on_one_connection() -> None:
    """Questions that come together, apart and byte by byte are all answered."""

    async def main() -> None:
        async with serving(echo) as world:
            reader, writer = await connect(world.server)
            writer.write(b"".join(framed(b"q%d" % i) for i in range(100)))
            for i in range(100):
                assert await read(reader) == b"q%d" % i
            for byte in framed(b"slowly"):
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert await read(reader) == b"slowly"
            writer.close()
            await until(lambda: not world.listener.connections)

    run(main)


def test_answers_leave_as_they_get_ready() -> None:
    """A later question may be answered first (RFC 7766 §6.2.1.1); silence answers nothing and blocks nothing."""
    later: list[Send] = []

    def handle(data: bytes, asker: str, send: Send, _forward: object) -> None:
        if data == b"slow":
            later.append(send)
        else:
            send(b"" if data == b"silence" else data)

    async def main() -> None:
        async with serving(handle) as world:
            reader, writer = await connect(world.server)
            writer.write(framed(b"slow") + framed(b"silence") + framed(b"quick"))
            assert await read(reader) == b"quick"
            later[0](b"at last")
            assert await read(reader) == b"at last"
            writer.close()

    run(main)


def test_half_close_still_brings_the_answers() -> None:
    """An asker that has no more questions gets the outstanding answers, and then the end."""
    later: list[Send] = []

    async def main() -> None:
        async with serving(lambda data, asker, send, _: later.append(send)) as world:
            reader, writer = await connect(world.server)
            writer.write(framed(b"q"))
            writer.write_eof()
            await until(lambda: bool(later))
            later[0](b"answer")
            assert await read(reader) == b"answer"
            assert await ended(reader)

    run(main)


def test_an_answer_after_the_end_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer for a connection that is gone does no harm."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.1)
    later: list[Send] = []

    async def main() -> None:
        async with serving(lambda data, asker, send, _: later.append(send)) as world:
            _, writer = await connect(world.server)
            writer.write(framed(b"q"))
            await until(lambda: bool(later))
            writer.transport.abort()
            await until(lambda: not world.listener.connections)
            later[0](b"answer")

    run(main)


def test_too_long_a_question_ends_it() -> None:
    """An asker that announces more than a question can be is cut off before it sends that."""

    async def main() -> None:
        async with serving(echo) as world:
            reader, writer = await connect(world.server)
            writer.write((module.MAX_QUESTION + 1).to_bytes(2))
            assert await ended(reader)
            writer.close()

    run(main)


def test_trickling_bytes_are_not_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that brings no whole question ends, whether it is silent or slow."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.2)

    async def main() -> None:
        async with serving(echo) as world:
            silent, silent_writer = await connect(world.server)
            slow, slow_writer = await connect(world.server)

            async def trickle() -> None:
                for byte in framed(b"x" * 4000):
                    slow_writer.write(bytes([byte]))
                    await asyncio.sleep(0.01)

            task = asyncio.create_task(trickle())
            assert await ended(silent)
            assert await ended(slow)
            task.cancel()
            silent_writer.close()
            slow_writer.close()

    run(main)


def test_an_asker_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are not read stop the reading of questions, and the connection ends."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.3)
    answered = 0

    def handle(data: bytes, asker: str, send: Send, _forward: object) -> None:
        nonlocal answered
        answered += 1
        send(bytes(60000))

    async def main() -> None:
        async with serving(handle) as world:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(world.server)
                sock.sendall(framed(b"q" * 100) * 2000)
                await until(lambda: bool(world.listener.connections))
                await until(lambda: not world.listener.connections)
            assert answered < 2000

    run(main)


def test_pending_questions_are_bounded() -> None:
    """Beyond 64 questions without an answer no more are taken; they are once answers are given."""
    later: list[Send] = []

    async def main() -> None:
        async with serving(lambda data, asker, send, _: later.append(send)) as world:
            reader, writer = await connect(world.server)
            writer.write(framed(b"q") * 500)
            await until(lambda: len(later) == module.MAX_PENDING)
            await asyncio.sleep(0.05)
            assert len(later) == module.MAX_PENDING
            given = 0
            while given < 500:
                await until(lambda n=given: len(later) > n)
                later[given](b"a")
                given += 1
                assert await read(reader) == b"a"
            writer.close()

    run(main)


def test_connections_of_an_asker_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its share an asker's connection is closed at once; another asker still gets in; ended ones make room."""
    monkeypatch.setattr(module, "MAX_CONNECTIONS_PER_ASKER", 2)

    async def main() -> None:
        async with serving(echo) as world:
            kept = [await connect(world.server) for _ in range(2)]
            await until(lambda: len(world.listener.connections) == 2)
            reader, writer = await connect(world.server)
            assert await ended(reader)
            writer.close()
            other = await connect(world.server, "127.0.0.2")
            assert await works(other)
            kept[0][1].close()
            await until(lambda: len(world.listener.connections) == 2)
            again = await connect(world.server)
            assert await works(again)
            for _, open_writer in (kept[1], other, again):
                open_writer.close()

    run(main)


async def works(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    """Whether a question is answered."""
    connection[1].write(framed(b"q"))
    return await read(connection[0]) == b"q"


def test_an_asker_with_most_connections_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all places are taken: the connection that was idle longest is closed, and never one of others."""
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 4)

    async def main() -> None:
        async with serving(echo) as world:
            first, second, third = [await connect(world.server) for _ in range(3)]
            other = await connect(world.server, "127.0.0.2")
            for connection in (other, third, first, second):
                assert await works(connection)
                now = asyncio.get_running_loop().time()  # of milliseconds
                await until(lambda now=now: asyncio.get_running_loop().time() > now + 0.001)
            newcomer = await connect(world.server, "127.0.0.3")
            assert await works(newcomer)
            assert await ended(third[0])
            again = await connect(world.server)
            assert await works(again)
            assert await ended(first[0]), "its own gives way to an asker with most"
            for connection in (other, second, newcomer):
                assert await works(connection)
            assert (world.limits.gave_way, world.limits.refused) == (2, 0)

    run(main)


def test_connections_that_wait_for_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No asker has more than another then, so the newcomer is turned away."""
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    sends: list[Send] = []

    async def main() -> None:
        async with serving(lambda _data, _asker, send, _forward: sends.append(send)) as world:
            busy = [await connect(world.server, f"127.0.0.{number}") for number in (1, 2)]
            for _, writer in busy:
                writer.write(framed(b"q"))
            await until(lambda: len(sends) == 2)
            reader, _ = await connect(world.server, "127.0.0.3")
            assert await ended(reader)
            for send in sends:
                send(b"answer")
            for reader, _ in busy:
                assert await read(reader) == b"answer"
            assert (world.limits.gave_way, world.limits.refused) == (0, 1)

    run(main)


def test_unknown_askers_give_way_to_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses somebody makes up: they hold no place that a container of the mesh asks for."""
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 4)

    async def main() -> None:
        async with serving(lambda data, _asker, send, _forward: None if data == b"wait" else send(data)) as world:
            world.limits._known = {"127.0.0.1", "127.0.0.2"}.__contains__
            unknown = [await connect(world.server, f"127.0.1.{number}") for number in range(1, 5)]
            for _, writer in unknown:
                writer.write(framed(b"wait"))
            await until(lambda: [c.busy for c in world.listener.connections] == [True] * 4)
            known = [await connect(world.server, f"127.0.0.{number}") for number in (1, 2, 1, 2)]
            for connection in known:
                assert await works(connection)
            reader, _ = await connect(world.server, "127.0.1.9")
            assert await ended(reader)
            for connection in known:
                assert await works(connection)

    run(main)


def test_an_asker_that_is_gone_holds_up_nobody() -> None:
    """An error of one connection's own is no reason to pause."""

    class Gone:
        """A listening socket at which some askers gave up."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.gone = [errno.ECONNABORTED, errno.EPROTO]

        def accept(self) -> object:
            if self.gone:
                raise OSError(self.gone.pop(), "gone")
            return self.sock.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    async def main() -> None:
        async with serving(echo) as world:
            world.listener._sock = Gone(world.sock)
            reader, writer = await connect(world.server)
            writer.write(framed(b"q"))
            assert await read(reader) == b"q"
            assert world.listener._pause is None
            writer.close()

    run(main)


def test_out_of_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """When accepting fails it is tried again after a pause instead of at once, for ever."""
    monkeypatch.setattr(module, "ACCEPT_PAUSE", 0.3)
    calls = 0

    class Full:
        """A listening socket in a process without file descriptors."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.full = True

        def accept(self) -> object:
            nonlocal calls
            if self.full:
                calls += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self.sock.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    async def main() -> None:
        async with serving(echo) as world:
            full = Full(world.sock)
            world.listener._sock = full
            reader, writer = await connect(world.server)
            writer.write(framed(b"q"))
            await until(lambda: calls >= 1)
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert calls < 10
            full.full = False
            assert await read(reader) == b"q"
            writer.close()

    run(main)
