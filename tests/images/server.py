"""A container's server for the tests: every kind of conversation, each on a port of its own.

7000 tcp, udp  the host name and a space, at once; then an echo; the same on 7001, which a test may publish
7002 tcp       reads to the end, then answers with length and SHA-256, then ends
7003 tcp       a line `reset` is answered with a reset; `seen` tells how the former connection ended, `who` who calls
7004 tcp       HTTP: GET /N gives N bytes of 0, 1, …, 250; POST tells length and SHA-256
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import struct

NAME = socket.gethostname().encode()
PATTERN = bytes(range(251)) * 4096
ENDED: list[str] = []


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, then repeat."""
    writer.write(NAME + b" ")
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read to the end before answering."""
    writer.write(await _sum(reader, None))


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reset on demand; note how a connection ended."""
    try:
        line = await reader.readline()
    except ConnectionResetError:
        ENDED.append("reset")
        return
    if line == b"reset\n":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    elif line == b"seen\n":
        writer.write((ENDED[-1] if ENDED else "nothing").encode())
    elif line == b"who\n":
        writer.write(writer.get_extra_info("peername")[0].encode())
    elif line:  # the appliance looks once whether the port accepts, and says nothing
        ENDED.append("end")


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    method, path, _ = head.split(" ", 2)
    if method == "GET":
        left = int(path[1:])
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
        while left:
            part = PATTERN[: min(left, len(PATTERN))]
            left -= len(part)
            writer.write(part)
            await writer.drain()
    else:
        length = int(head.lower().split("content-length:")[1].split()[0])
        if "100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _sum(reader, length)
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def _sum(reader: asyncio.StreamReader, length: int | None) -> bytes:
    """Return length and SHA-256 of what comes, to the end or `length` bytes."""
    seen, sha = 0, hashlib.sha256()
    while length is None or seen < length:
        data = await reader.read(1 << 20)
        if not data:
            break
        seen += len(data)
        sha.update(data)
    return f"{seen} {sha.hexdigest()}".encode()


class Datagrams(asyncio.DatagramProtocol):
    """Echo with the host name."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to answer."""
        self._transport = transport

    def datagram_received(self, data: bytes, caller: tuple[str, int]) -> None:
        """Answer."""
        self._transport.sendto(NAME + b" " + data, caller)  # type: ignore[attr-defined]


def closing(talk: object) -> object:
    """Return a handler that closes its connection at the end, whatever happened."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)  # type: ignore[operator]
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return handle


async def main() -> None:
    """Serve all ports for ever."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, os._exit, 0)  # process 1 is spared what has no handler
    for port in (7000, 7001):
        await loop.create_datagram_endpoint(Datagrams, local_addr=("0.0.0.0", port))
    for port, talk in ((7000, echo), (7001, echo), (7002, digest), (7003, reset), (7004, http)):
        await asyncio.start_server(closing(talk), "0.0.0.0", port, backlog=4096)  # type: ignore[arg-type]
    await asyncio.Event().wait()


asyncio.run(main())
