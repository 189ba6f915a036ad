"""Clients, backends and a loop for the tests of the UDP listener, all on 127.0.0.0/8."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import uvloop

from appliance.dataplane.context import Context
from appliance.dataplane.udp.listener import UdpListener
from appliance.model.names import Destination
from appliance.model.network import Backend, Listener

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 5.0
"""Seconds after which a test that still waits has failed."""
CALLER = "127.0.0.1"
PEER = "127.0.0.2"
STRANGER = "127.0.0.3"


class Socket:
    """A UDP socket of a client or a backend, bound to an address of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str = CALLER) -> None:
        self._loop = loop
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self.sock.bind((host, 0))
        self.address: tuple[str, int] = self.sock.getsockname()

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        """Send one datagram."""
        self.sock.sendto(data, to)

    def receive(self) -> tuple[bytes, tuple[str, int]]:
        """Run the loop until a datagram is there; return it and where it came from."""
        found: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self.sock.fileno(), lambda: found.done() or found.set_result(None))
        try:
            self._loop.run_until_complete(asyncio.wait_for(found, DEADLINE))
        finally:
            self._loop.remove_reader(self.sock.fileno())
        return self.sock.recvfrom(1 << 16)

    def queued(self) -> list[bytes]:
        """Return the datagrams that are there already."""
        data = []
        while True:
            try:
                data.append(self.sock.recv(1 << 16))
            except BlockingIOError:
                return data

    def close(self) -> None:
        """Close it, so that its port is unreachable."""
        self.sock.close()


class World:
    """A loop, the sockets that were asked for, and one listener."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.context = Context(self.loop)
        self.epoll = self.context.epoll
        self.errors: list[object] = []
        """What reached the loop's exception handler: nothing may."""
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.udp: UdpListener | None = None
        self._sockets: list[Socket] = []

    def socket(self, host: str = CALLER) -> Socket:
        """Return a new client or backend."""
        self._sockets.append(Socket(self.loop, host))
        return self._sockets[-1]

    def open(self, *backends: Backend, **options: object) -> tuple[UdpListener, tuple[str, int]]:
        """Open a listener on a free port; return it and where to send."""
        self.udp = UdpListener(self.context, listener(free_port(), *backends), **options)
        return self.udp, (CALLER, self.udp.port)

    def turn(self, times: int = 20) -> None:
        """Let the loop handle all that is there."""
        for _ in range(times):
            self.loop.run_until_complete(asyncio.sleep(0))

    def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until the condition holds."""

        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.01)

        self.loop.run_until_complete(asyncio.wait_for(poll(), DEADLINE))

    def close(self) -> None:
        """Close everything."""
        if self.udp is not None:
            self.udp.stop()
            self.udp.end_pairs()
        for each in self._sockets:
            each.close()
        self.turn(3)
        assert self.context.shares.held == 0
        self.context.close()
        self.loop.close()


def backend(sock: Socket, *, local: bool = True, label: str = "") -> Backend:
    """Return the value that names this socket as a backend."""
    host, port = sock.address
    return Backend(address=IPv4Address(host), port=port, local=local, label=label)


def listener(port: int, *backends: Backend, callers: tuple[str, ...] = (CALLER,)) -> Listener:
    """Return a listener that CALLER and PEER may call."""
    return Listener(
        destination=Destination.parse("apple.orange:8080/udp"),
        port=port,
        callers=frozenset(map(IPv4Address, callers)),
        peers=frozenset((IPv4Address(PEER),)),
        backends=backends,
    )


def free_port() -> int:
    """Return a UDP port that nothing holds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])
