"""One listening TCP port of the proxy: who may come in, and the pairs that came of it."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

from appliance.dataplane.balance import Balancer
from appliance.dataplane.tcp.accept import Acceptor, listen
from appliance.dataplane.tcp.dial import Dial
from appliance.dataplane.tcp.relay import Pair, reset_on_close
from appliance.model.stats import BackendStats, Connection, ListenerStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.tcp.accept import Shared
    from appliance.model.network import Listener


class Source:
    """An address that may call."""

    __slots__ = ("host", "local_only")

    def __init__(self, host: str, *, local_only: bool) -> None:
        self.host = host
        self.local_only = local_only
        """A peer machine: it gets backends of this host only."""


class TcpListener(Acceptor):
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
        self.pipes = shared.pipes
        self.dials = shared.dials
        self.insides = shared.insides
        self._on_empty = on_empty
        self.destination = listener.destination
        self.port = listener.port
        self.dialled = ("", 0)
        """The virtual IP and port that lead here through doors."""
        self.balancer = Balancer()
        self.pairs: set[Pair] = set()
        self.accepted = 0
        self.refused = 0
        self.failed = 0
        self._wanted = listener
        self._callers = _callers(listener.callers)
        self._peers = _peers(listener.peers)
        self.balancer.update(listener.backends)
        super().__init__(shared, str(listener.destination), sock or listen(listener.port)[0])

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

    def stop(self) -> None:
        """Accept those who wait already, then no more. Pairs go on."""
        if self.stopped:
            return
        super().stop()
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

    def take(self, client: SocketType, host: str) -> bool:
        """Dial for a client that was accepted; return whether to accept another."""
        self.accepted += 1
        source = self._callers.get(host) or self._peers.get(host)
        if source is None:
            self.refused += 1
            reset_on_close(client)
            self.epoll.close(client)
        else:
            Dial(self, client, source).start()
        return not self.pausing

    def _source(self, host: str) -> Source | None:
        return self._callers.get(host) or self._peers.get(host)


def _callers(addresses: frozenset[IPv4Address]) -> dict[str, Source]:
    return {host: Source(host, local_only=False) for host in map(str, addresses)}


@lru_cache(maxsize=2)
def _peers(addresses: frozenset[IPv4Address]) -> dict[str, Source]:
    """Return the sources that peer machines are: one table for all listeners, as there may be a thousand of them."""
    return {host: Source(host, local_only=True) for host in map(str, addresses)}


def _peer_name(sock: SocketType, host: str) -> str:
    try:
        return f"{host}:{sock.getpeername()[1]}"
    except OSError:
        return host  # reset a moment ago
