"""Callers that notice how others are served: `callers.py SECONDS NAME ADDRESS PORT DNS NETNS …`.

One caller in each network namespace makes 50 requests a second on a connection that it keeps. Every second one of them
is on a new connection, and another asks the DNS server at the address DNS for NAME, which must be ADDRESS. Prints one
line of JSON: how many requests, how many failed, and their times in ms. The sockets belong to the namespaces; the
program itself runs in its own.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from functools import partial
from statistics import quantiles
from typing import TYPE_CHECKING, TypeVar

import orjson

from appliance.drivers.netns import netlink

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")
RATE = 50
"""Requests of each caller in a second."""
PATIENCE = 5.0
"""Seconds without an answer after which a request has failed."""
WORD = b"x" * 64
DNS_PORT = 53


class Caller:
    """One of them."""

    def __init__(self, path: str, name: str, address: tuple[str, int], dns: str) -> None:
        self._path = path
        self._name = name
        self._address = address
        self._dns = dns
        self.times: list[float] = []
        self.failed: list[str] = []

    async def run(self, until: float, delay: float) -> None:
        """Ask until that time."""
        await asyncio.sleep(delay)
        kept = await self._timed(self._connected(), count=False)
        number = 0
        begin = time.monotonic()
        while time.monotonic() < until:
            number += 1
            if number % RATE == 0:
                await self._timed(self._once())
            elif number % RATE == RATE // 2:
                await self._timed(self._look_up(number))
            elif kept is None:
                kept = await self._timed(self._connected())
            elif await self._timed(self._ask(kept)) is None:
                kept.close()
                kept = None
            await asyncio.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        if kept is not None:
            kept.close()

    async def _timed(self, work: Awaitable[T], *, count: bool = True) -> T | None:
        """Return what comes of it; None if it has failed."""
        begin = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                result = await work
        except OSError as error:  # TimeoutError is one
            self.failed.append(type(error).__name__)
            return None
        if count:
            self.times.append((time.monotonic() - begin) * 1000)
        return result

    async def _connected(self) -> socket.socket:
        """Return a connection through which the server has said its name."""
        sock = netlink.entered(self._path, socket.socket)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, self._address)
            if not await loop.sock_recv(sock, 1000):
                raise ConnectionAbortedError
        except BaseException:
            sock.close()
            raise
        return sock

    async def _ask(self, sock: socket.socket) -> bool:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, WORD)
        left = len(WORD)
        while left:
            data = await loop.sock_recv(sock, left)
            if not data:
                raise ConnectionAbortedError
            left -= len(data)
        return True

    async def _look_up(self, number: int) -> bool:
        """Ask what address the name has."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in self._name.split("."))
        question = (number & 65535).to_bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
        loop = asyncio.get_running_loop()
        with netlink.entered(self._path, partial(socket.socket, type=socket.SOCK_DGRAM)) as sock:
            sock.setblocking(False)
            sock.connect((self._dns, DNS_PORT))
            await loop.sock_sendall(sock, question)
            answer = await loop.sock_recv(sock, 1000)
        if not answer.endswith(socket.inet_aton(self._address[0])):
            raise ConnectionAbortedError
        return True

    async def _once(self) -> bool:
        sock = await self._connected()
        try:
            return await self._ask(sock)
        finally:
            sock.close()


async def main(seconds: float, name: str, address: tuple[str, int], dns: str, paths: list[str]) -> None:
    """Let all of them ask, and tell what they met."""
    callers = [Caller(path, name, address, dns) for path in paths]
    until = time.monotonic() + seconds
    await asyncio.gather(*(one.run(until, number / RATE / len(callers)) for number, one in enumerate(callers)))
    times = sorted(one for caller in callers for one in caller.times)
    failed = [one for caller in callers for one in caller.failed]
    met = {"requests": len(times), "failed": len(failed), "why": sorted(set(failed))}
    if len(times) > 1:
        parts = quantiles(times, n=100)
        met |= {"p50 ms": parts[49], "p99 ms": parts[98], "worst ms": times[-1]}
    print(orjson.dumps(met).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2], (sys.argv[3], int(sys.argv[4])), sys.argv[5], sys.argv[6:]))
