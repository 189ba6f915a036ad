"""One listening TCP port of the proxy: who may come in, and the pairs that came of it."""

from __future__ import annotations

import socket
import time
from functools import lru_cache
from socket import SocketType
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.balance import Balancer
from appliance.dataplane.dial import KEEPALIVE, NO_DESCRIPTORS, NONBLOCKING, Dial, Dials
from appliance.dataplane.epoll import IN, EpollSet
from appliance.dataplane.pipes import PipePool
from appliance.dataplane.relay import Pair, reset_on_close
from appliance.model.stats import BackendStats, Connection, ListenerStats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address

    from appliance.model.network import Listener

log = structlog.get_logger()

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn."""
ACCEPTS = 16
"""Most connections accepted at a time, so that one listener does not hold up the others."""
OWN = -1
"""The place of a listener's own socket among those from which it accepts; others' have their numbers."""
PAUSE = 0.2
"""Seconds without accepting after the process or the host ran out of file descriptors."""


class Source:
    """An address that may call."""

    __slots__ = ("host", "local_only")

    def __init__(self, host: str, *, local_only: bool) -> None:
        self.host = host
        self.local_only = local_only
        """A peer machine: it gets backends of this host only."""


class Shared:
    """What all TCP listeners of one process have in common."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.epoll = EpollSet(loop)
        self.pipes = PipePool()
        self.dials = Dials(loop)

    def close(self) -> None:
        """Release everything; no listener and no pair may be open any more."""
        self.dials.close()
        self.epoll.shut()
        self.pipes.close()


class Acceptor:
    """A socket of a listener, at which clients wait."""

    def __init__(self, listener: TcpListener, sock: SocketType) -> None:
        self.sock = sock
        self._listener = listener
        self._accept = sock._accept  # type: ignore[attr-defined]  # noqa: SLF001 — socket.accept() costs 4 µs more

    def ready(self, _events: int) -> None:
        """Accept some of those who wait; the socket is level-triggered, so the rest are reported again."""
        self.accept(ACCEPTS)

    def fail(self) -> None:
        """Nothing to give up: the client whose handling failed was reset by its own handler."""

    def accept(self, most: int) -> None:
        """Accept so many of those who wait."""
        for _ in range(most):
            try:
                fd, (host, _port) = self._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._listener.pause(error)
                    return
                continue  # that client is gone already, or an error of its network (accept(2)): the next one
            if not self._listener.take(fd, host):
                return


class TcpListener:
    """Serves one destination until `stop`, and its pairs until they end."""

    def __init__(
        self,
        shared: Shared,
        listener: Listener,
        *,
        on_empty: Callable[[TcpListener], None],
        sock: SocketType | None = None,
    ) -> None:
        """Open the port, or take over `sock`, and accept. Raises OSError.

        `on_empty` is called once nothing is left after `stop`.
        """
        self._loop = shared.loop
        self.epoll = shared.epoll
        self.pipes = shared.pipes
        self.dials = shared.dials
        self._on_empty = on_empty
        self.destination = listener.destination
        self.port = listener.port
        self.balancer = Balancer()
        self.pairs: set[Pair] = set()
        self.accepted = 0
        self.refused = 0
        self.failed = 0
        self.starved = 0
        """How often accepting paused for want of file descriptors."""
        self.stopped = False
        self.starving = False
        """Whether the last attempt to get a file descriptor failed; so that it is logged once."""
        self._resume: asyncio.TimerHandle | None = None
        self._wanted = listener
        self._callers = _callers(listener.callers)
        self._peers = _peers(listener.peers)
        self.balancer.update(listener.backends)
        self._acceptors = {OWN: Acceptor(self, sock or listen(listener.port)[0])}
        self._watch()

    @property
    def active(self) -> int:
        """Pairs, and clients that still wait for a backend."""
        return len(self.pairs) + len(self.dials.of(self))

    def swap(self, listener: Listener) -> None:
        """Take new callers, peers and backends; reset the pairs that these do not allow."""
        same_access = listener.same_access(self._wanted)
        self._wanted = listener
        self.balancer.update(listener.backends)
        if same_access:
            return
        self._callers = _callers(listener.callers)
        self._peers = _peers(listener.peers)
        for pair in list(self.pairs):
            source = self._source(pair.source.host)
            if source is None or (source.local_only and not pair.state.backend.local):
                pair.reset()
            else:
                pair.source = source
        for dial in self.dials.of(self):
            if self._source(dial.source.host) is None:
                dial.cancel()

    def cover(self, place: int, sock: SocketType) -> None:
        """Accept from the socket of another process, too, until `uncover`."""
        self.uncover(place)
        self._acceptors[place] = Acceptor(self, sock)
        if self._resume is None:
            self._watch()

    def uncover(self, place: int) -> None:
        """Leave that process's socket to it."""
        acceptor = self._acceptors.pop(place, None)
        if acceptor is not None:
            self._close(acceptor)

    def stop(self) -> None:
        """Accept those who wait already, then no more. Pairs go on."""
        if self.stopped:
            return
        self._cancel_pause()
        for acceptor in self._acceptors.values():
            acceptor.accept(BACKLOG)
        self.stopped = True
        self._cancel_pause()
        for acceptor in self._acceptors.values():
            self._close(acceptor)
        self._acceptors.clear()
        self.went()

    def end_pairs(self) -> None:
        """Reset what is left."""
        for dial in self.dials.of(self):
            dial.cancel()
        for pair in list(self.pairs):
            pair.reset()

    def forget(self, pair: Pair) -> None:
        """Note that a pair has ended."""
        self.pairs.discard(pair)
        if self.stopped:
            self.went()

    def went(self) -> None:
        """Tell the owner if nothing is left of a stopped listener."""
        if self.stopped and not self.active:
            self._on_empty(self)

    def pause(self, error: OSError) -> None:
        """Accept no more for a moment: there are no file descriptors left."""
        self.starved += 1
        if not self.starving:
            self.starving = True
            log.warning(
                "out of file descriptors; accepting pauses", destination=str(self.destination), error=str(error)
            )
        if self._resume is None and not self.stopped:
            for acceptor in self._acceptors.values():
                self.epoll.remove(acceptor.sock.fileno())
            self._resume = self._loop.call_later(PAUSE, self._go_on)

    def stats(self) -> ListenerStats:
        """Return the counters; those of backends include the pairs that are open."""
        now = time.monotonic()
        moving: dict[int, tuple[int, int]] = {}
        for pair in self.pairs:
            to, back = moving.get(id(pair.state), (0, 0))
            moving[id(pair.state)] = (to + pair.client.moved, back + pair.backend.moved)
        backends = []
        for state in self.balancer.states.values():
            to, back = moving.get(id(state), (0, 0))
            backends.append(
                BackendStats(
                    backend=state.backend,
                    opened=state.opened,
                    failed=state.failed,
                    active=state.active,
                    bytes_in=state.bytes_in + to,
                    bytes_out=state.bytes_out + back,
                    ejected=max(0.0, state.ejected_until - now),
                )
            )
        return ListenerStats(
            destination=self.destination,
            port=self.port,
            accepted=self.accepted,
            refused=self.refused,
            failed=self.failed,
            active=self.active,
            starved=self.starved,
            backends=tuple(backends),
        )

    def connections(self) -> Iterable[Connection]:
        """Return the open pairs."""
        now = time.monotonic()
        states = self.balancer.states
        return [
            Connection(
                destination=self.destination,
                client=_peer_name(pair.client.sock, pair.source.host),
                backend=f"{pair.state.address[0]}:{pair.state.address[1]}",
                label=pair.state.backend.label,
                bytes_in=pair.client.moved,
                bytes_out=pair.backend.moved,
                age=now - pair.opened,
                draining=self.stopped or states.get(pair.state.address) is not pair.state,
            )
            for pair in self.pairs
        ]

    def pairs_to(self, address: IPv4Address) -> int:
        """Return how many pairs lead to a backend at that address."""
        return sum(pair.state.backend.address == address for pair in self.pairs)

    def take(self, fd: int, host: str) -> bool:
        """Dial for a client that was accepted; return whether to accept another."""
        self.accepted += 1
        # The descriptor itself blocks; MSG_DONTWAIT on each call saves two system calls to change that.
        client = SocketType(socket.AF_INET, NONBLOCKING, 0, fd)
        source = self._callers.get(host) or self._peers.get(host)
        if source is None:
            self.refused += 1
            reset_on_close(client)
            self.epoll.close(client)
        else:
            Dial(self, client, source).start()
        return self._resume is None

    def _source(self, host: str) -> Source | None:
        return self._callers.get(host) or self._peers.get(host)

    def _cancel_pause(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None

    def _go_on(self) -> None:
        self._resume = None
        self._watch()

    def _watch(self) -> None:
        for acceptor in self._acceptors.values():
            if acceptor.sock.fileno() not in self.epoll.handlers:
                self.epoll.add(acceptor.sock.fileno(), acceptor, IN)

    def _close(self, acceptor: Acceptor) -> None:
        self.epoll.remove(acceptor.sock.fileno())  # closing does not, where another process has the same socket
        self.epoll.close(acceptor.sock)


def _callers(addresses: frozenset[IPv4Address]) -> dict[str, Source]:
    return {host: Source(host, local_only=False) for host in map(str, addresses)}


@lru_cache(maxsize=2)
def _peers(addresses: frozenset[IPv4Address]) -> dict[str, Source]:
    """Return the sources that peer machines are: one table for all listeners, as there may be a thousand of them."""
    return {host: Source(host, local_only=True) for host in map(str, addresses)}


def listen(port: int, number: int = 1) -> tuple[SocketType, ...]:
    """Open listening sockets, whose options those that they accept inherit. Raises OSError.

    Among several the kernel shares connections out (SO_REUSEPORT, socket(7)). The first is bound without, so that a
    port that anybody else holds is an error.
    """
    sockets: list[SocketType] = []
    try:
        for _ in range(number):
            sock = SocketType(socket.AF_INET, NONBLOCKING, 0)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in KEEPALIVE:
                sock.setsockopt(*option)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, len(sockets) > 1)
            sock.bind(("0.0.0.0", port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, number > 1)
        for sock in sockets:
            sock.listen(BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return tuple(sockets)


def _peer_name(sock: SocketType, host: str) -> str:
    try:
        return f"{host}:{sock.getpeername()[1]}"
    except OSError:
        return host  # reset a moment ago
