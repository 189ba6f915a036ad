"""For the DNS tests: a loop of uvloop's, askers with their own addresses, an upstream that does as it is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

import dns.message
import dns.rrset
import uvloop

DEADLINE = 10.0
"""Seconds after which a test that waits has failed."""


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's body on uvloop; what a callback raises there fails the test."""
    raised: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        await main()

    uvloop.run(watched())
    assert not raised


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def free_port() -> int:
    """Return a port that is free for UDP and TCP on every loopback address."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("", 0))
            port: int = tcp.getsockname()[1]
            with suppress(OSError):
                udp.bind(("", port))
                return port


async def exchange(server: tuple[str, int], data: bytes, source: str = "127.0.0.1", wait: float = DEADLINE) -> bytes:
    """Send one datagram from `source` and return the first that comes back. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((source, 0))
        sock.connect(server)
        await loop.sock_sendall(sock, data)
        async with asyncio.timeout(wait):
            return await loop.sock_recv(sock, 65535)


async def ask(
    server: tuple[str, int], name: str, rtype: str = "A", source: str = "127.0.0.1", **options: Any
) -> dns.message.Message:
    """Ask over UDP and return the answer, which dnspython has checked to be one."""
    message = dns.message.make_query(name, rtype, **{"use_edns": 0, **options})
    answer = dns.message.from_wire(await exchange(server, message.to_wire(), source))
    assert message.is_response(answer)
    return answer


async def connect(
    server: tuple[str, int], source: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a TCP connection from `source`."""
    return await asyncio.open_connection(*server, local_addr=(source, 0))


def framed(message: dns.message.Message | bytes) -> bytes:
    """Return a message as it goes over TCP."""
    wire = message if isinstance(message, bytes) else message.to_wire(max_size=65535)
    return len(wire).to_bytes(2) + wire


async def read_framed(reader: asyncio.StreamReader) -> dns.message.Message:
    """Read one message from a TCP connection."""
    async with asyncio.timeout(DEADLINE):
        return dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))


def records(query: dns.message.Message, *texts: str) -> dns.message.Message:
    """Return a response to `query` with these records: `ttl type data` for its own name, or with an owner in front."""
    message = dns.message.make_response(query, recursion_available=True)
    for text in texts:
        words = text.split(" ")
        if words[0].isdigit():
            words.insert(0, str(query.question[0].name))
        message.answer.append(dns.rrset.from_text(words[0], int(words[1]), "IN", words[2], " ".join(words[3:])))
    return message


Behaviour = Callable[[dns.message.Message], "dns.message.Message | bytes | None"]


class Upstream(asyncio.DatagramProtocol):
    """A resolver on a loopback address. `behave` and `behave_tcp` say what it answers; None is silence."""

    def __init__(self, behave: Behaviour, behave_tcp: Behaviour | None = None, host: str = "127.0.0.1") -> None:
        self.behave = behave
        self.behave_tcp = behave_tcp or behave
        self.server = (host, free_port())
        self.asked: list[dns.message.Message] = []
        self.asked_tcp: list[dns.message.Message] = []
        self.askers: list[tuple[str, int]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.server)
        self.listener = await asyncio.start_server(self._serve, *self.server)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()
        self.listener.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer over UDP."""
        query = dns.message.from_wire(data)
        self.asked.append(query)
        self.askers.append(addr)
        answer = self.behave(query)
        if answer is not None:
            self.transport.sendto(answer if isinstance(answer, bytes) else answer.to_wire(), addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(EOFError, OSError):
            query = await read_framed(reader)
            self.asked_tcp.append(query)
            answer = self.behave_tcp(query)
            if answer is not None:
                writer.write(framed(answer))
                await reader.read()
        writer.close()
