"""From an accepted client to a pair: choosing a backend, connecting to it, trying another when that fails."""

from __future__ import annotations

import errno
import os
import socket
import time
from socket import SocketType
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.loop.epoll import ERR, HUP, NOT_OUT
from appliance.dataplane.sources import leave_from
from appliance.dataplane.tcp.relay import Pair, reset_on_close

if TYPE_CHECKING:
    import asyncio

    from appliance.dataplane.balance import BackendState
    from appliance.dataplane.namespace import NamespaceSockets
    from appliance.dataplane.tcp.listener import Source, TcpListener

log = structlog.get_logger()

MOST_BACKENDS = 3
"""Backends tried for one client."""
TIMEOUT = 3.0
"""Seconds in which a backend must accept."""
SWEEP = 0.5
"""Seconds between looks at the dials under way."""
NONBLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors that say: the process or the host has no room for another socket at present."""
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
)
"""A dead machine is noticed after two minutes, also by connections on which nobody speaks."""


class Dial:
    """One client that waits for a backend."""

    __slots__ = ("_sock", "_tried", "began", "client", "listener", "source", "state")

    _sock: SocketType
    state: BackendState

    def __init__(self, listener: TcpListener, client: SocketType, source: Source) -> None:
        self.listener = listener
        self.client = client
        self.source = source
        self._tried: tuple[BackendState, ...] = ()
        self.began = 0.0

    def start(self) -> None:
        """Connect to a backend; when there is none left, reset the client."""
        listener = self.listener
        balancer = listener.balancer
        while len(self._tried) < MOST_BACKENDS:
            state = balancer.pick(local_only=self.source.local_only, tried=self._tried)
            if state is None:
                break
            try:
                self._sock = sock = _socket(listener.insides.get(state.inside))
                listener.epoll.add(sock.fileno(), self)
            except OSError as error:
                listener.pause(error)
                break
            code = _connect(sock, state)
            if code in (0, errno.EINPROGRESS):
                self.state = state
                listener.starving = False
                listener.dials.add(self)
                return
            listener.epoll.close(sock)
            self._failed(state, code)
        listener.failed += 1
        self._reset_client()

    def ready(self, events: int) -> None:
        """Make a pair if the backend has accepted; try another one if it has not."""
        listener = self.listener
        listener.dials.discard(self)
        if events & (ERR | HUP):
            self.retry(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            return
        listener.balancer.succeeded(self.state)
        pair = Pair(listener, self.source, self.state, self.client, self._sock)
        listener.pairs.add(pair)
        epoll = listener.epoll
        epoll.handlers[pair.backend.fd] = pair.backend
        try:
            epoll.add(pair.client.fd, pair.client)
        except OSError as error:
            listener.pause(error)
            pair.reset()
            return
        if events & NOT_OUT:
            pair.backend.ready(events)

    def retry(self, code: int) -> None:
        """Give up this backend for the reason `code` (an errno) and try another one."""
        self.listener.epoll.close(self._sock)
        self._failed(self.state, code)
        self.start()

    def fail(self) -> None:
        """Reset the client after an error in the handler."""
        self.cancel()

    def cancel(self) -> None:
        """Reset the client; the backend is not to blame."""
        self.listener.dials.discard(self)
        self.listener.epoll.close(self._sock)
        self._reset_client()

    def _failed(self, state: BackendState, code: int) -> None:
        self._tried += (state,)
        self.listener.balancer.failed(state)
        if state.failures == 1:
            log.info(
                "backend left out for a while",
                destination=str(self.listener.destination),
                backend=state.backend.label,
                address=f"{state.address[0]}:{state.address[1]}",
                cause=os.strerror(code),
            )

    def _reset_client(self) -> None:
        reset_on_close(self.client)
        self.listener.epoll.close(self.client)
        self.listener.went()


def _socket(inside: NamespaceSockets | None) -> SocketType:
    """Make a socket: in the backend's own namespace, where the data plane has a door there. Raises OSError."""
    sock = None if inside is None else inside.socket()
    if sock is None:
        sock = SocketType(socket.AF_INET, NONBLOCKING, 0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in KEEPALIVE:
            sock.setsockopt(*option)
    return sock


def _connect(sock: SocketType, state: BackendState) -> int:
    """Begin to connect; return the errno."""
    if state.source is not None:
        try:
            leave_from(sock, state.source)
        except OSError as error:
            return error.errno or errno.EADDRNOTAVAIL
    return sock.connect_ex(state.address)


class Dials:
    """All dials under way, oldest first, so that none waits longer than TIMEOUT."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._dials: dict[Dial, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, dial: Dial) -> None:
        """Begin to watch."""
        dial.began = time.monotonic()
        self._dials[dial] = None
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP, self._sweep)

    def discard(self, dial: Dial) -> None:
        """Watch no longer."""
        self._dials.pop(dial, None)

    def of(self, listener: TcpListener) -> list[Dial]:
        """Return those of one listener."""
        return [dial for dial in self._dials if dial.listener is listener]

    def __len__(self) -> int:
        return len(self._dials)

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        latest = time.monotonic() - TIMEOUT
        late = []
        for dial in self._dials:
            if dial.began > latest:
                break
            late.append(dial)
        for dial in late:
            self.discard(dial)
            dial.retry(errno.ETIMEDOUT)
        self._timer = self._loop.call_later(SWEEP, self._sweep) if self._dials else None
