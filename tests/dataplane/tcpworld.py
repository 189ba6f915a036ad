"""Clients and backends for the tests of the TCP data plane: blocking sockets here, the data plane in a thread there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import select
import socket
import struct
import threading
import time
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from structlog.testing import capture_logs

from appliance.dataplane.context import Context
from appliance.dataplane.tcp.listener import TcpListener
from appliance.model.names import Destination
from appliance.model.network import Backend, Listener

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 10.0
"""Seconds after which a test that still waits has failed."""
CALLER = "127.0.0.1"
PEER = "127.0.0.2"
STRANGER = "127.0.0.3"
DESTINATION = Destination.parse("web.shop:80")


def free_port() -> int:
    """Return a port on which nothing listens at present."""
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait until the condition holds and return its value."""
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < end, "this did not come true in time"
        pause.wait(0.005)
    return value


def read_all(sock: socket.socket, size: int | None = None) -> bytes:
    """Read `size` bytes, or to the end of the stream."""
    data = bytearray()
    while size is None or len(data) < size:
        part = sock.recv(1 << 16 if size is None else min(1 << 16, size - len(data)))
        if not part:
            break
        data += part
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_reset(sock: socket.socket) -> bool:
    """Read what there is; return whether a reset follows (and not an end of stream)."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return False


def noise(size: int, seed: int) -> bytes:
    """Return `size` bytes that repeat nothing, the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


def open_descriptors() -> int:
    """Return how many file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir())) - 1


def backend_of(sock: socket.socket, *, local: bool = True, label: str = "") -> Backend:
    """Return the Backend that stands for a listening socket."""
    host, port = sock.getsockname()
    return Backend(address=IPv4Address(host), port=port, local=local, label=label)


def listener_of(
    port: int, *backends: Backend, callers: tuple[str, ...] = (CALLER,), peers: tuple[str, ...] = (PEER,)
) -> Listener:
    """Return a Listener of DESTINATION."""
    return Listener(
        destination=DESTINATION,
        port=port,
        callers=frozenset(map(IPv4Address, callers)),
        peers=frozenset(map(IPv4Address, peers)),
        backends=backends,
    )


class World:
    """A uvloop in a thread of its own, one TcpListener on it, and sockets that are closed at the end."""

    def __init__(self, *, files: int = 0) -> None:
        """`files` is the limit of open files that the data plane keeps to (0: that of this process)."""
        self.errors: list[object] = []
        """What reached the loop's exception handler: nothing may."""
        self._stack = ExitStack()
        self.logs = self._stack.enter_context(capture_logs())
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.context: Context = self.call(Context, self.loop, files=files)
        self.listeners: list[TcpListener] = []
        self.emptied: list[TcpListener] = []
        self.faults_expected = False

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function on the loop's thread and return its result."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 — it is raised where it belongs, in the test
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result(DEADLINE)

    def keep(self, sock: socket.socket) -> socket.socket:
        """Close this socket at the end of the test."""
        sock.settimeout(DEADLINE)
        self._stack.callback(sock.close)
        return sock

    def backend(self, host: str = "127.0.0.1", backlog: int = 128) -> socket.socket:
        """Return a listening socket."""
        sock = self.keep(socket.socket())
        sock.bind((host, 0))
        sock.listen(backlog)
        return sock

    def dead(self, host: str = "127.0.0.1") -> Backend:
        """Return a backend that refuses."""
        return Backend(address=IPv4Address(host), port=free_port(), local=True, label="dead")

    def open(self, *backends: Backend | socket.socket, **access: tuple[str, ...]) -> TcpListener:
        """Open a listener that leads to these."""
        known = [backend_of(b) if isinstance(b, socket.socket) else b for b in backends]
        wanted = listener_of(free_port(), *known, **access)
        listener: TcpListener = self.call(TcpListener, self.context, wanted, on_empty=self.emptied.append)
        self.listeners.append(listener)
        return listener

    def swap(self, *backends: Backend | socket.socket, **access: tuple[str, ...]) -> None:
        """Give the first listener new callers, peers and backends."""
        known = [backend_of(b) if isinstance(b, socket.socket) else b for b in backends]
        listener = self.listeners[0]
        self.call(listener.swap, listener_of(listener.port, *known, **access))

    def client(self, host: str = CALLER, buffer: int = 0) -> socket.socket:
        """Return a socket that dials from `host`, not yet connected."""
        sock = self.keep(socket.socket())
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.bind((host, 0))
        return sock

    def dial(self, host: str = CALLER, buffer: int = 0) -> socket.socket:
        """Return a socket connected to the first listener."""
        sock = self.client(host, buffer)
        sock.connect((CALLER, self.listeners[0].port))
        return sock

    def turned_away(self, host: str = CALLER) -> bool:
        """Return whether a client of the first listener is reset, while connecting or after."""
        return refused_or_reset(self.client(host), self.listeners[0].port)

    def accept(self, backend: socket.socket) -> socket.socket:
        """Return the next connection that arrives at a backend."""
        return self.keep(backend.accept()[0])

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return a client and a server that a new listener has joined."""
        backend = self.backend()
        self.open(backend)
        client = self.dial()
        return client, self.accept(backend)

    def stats(self) -> Any:
        """Return the counters of the first listener."""
        return self.call(self.listeners[0].stats)

    def idle(self) -> bool:
        """Return whether no pair and no dial is left."""
        return not any(self.call(lambda: [listener.active for listener in self.listeners]))

    def close(self) -> None:
        """End everything; then nothing may be left and nothing may have gone wrong."""
        try:
            self.call(self._end)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(DEADLINE)
            self._stack.close()
            self.loop.close()
        assert not self.errors
        assert self.context.pipes.lent == 0
        assert self.context.shares.stuck == self.context.shares.held == 0
        assert not self.context.epoll.handlers
        assert self.faults_expected or not [entry for entry in self.logs if entry["log_level"] == "error"]

    def _end(self) -> None:
        for listener in self.listeners:
            listener.stop()
            listener.end_pairs()
        self.context.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


def refused_or_reset(sock: socket.socket, port: int) -> bool:
    """Connect; return whether that was refused, or reset right after."""
    try:
        sock.connect((CALLER, port))
        sock.send(b"?")
        return is_reset(sock)
    except (ConnectionResetError, ConnectionRefusedError, BrokenPipeError):
        return True


def fill(sock: socket.socket) -> int:
    """Send until the other side takes no more for a while; return how many bytes went."""
    sent = 0
    while select.select([], [sock], [], 0.3)[1]:
        sent += sock.send(bytes(1 << 16), socket.MSG_DONTWAIT)
    return sent
