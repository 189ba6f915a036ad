"""One listening TCP port of the proxy: which callers may use it, and the pairs that came of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from appliance.dataplane.access import Access
from appliance.dataplane.balance import Balancer
from appliance.dataplane.loop.epoll import NOT_OUT
from appliance.dataplane.sockets import listen, reset_on_close
from appliance.dataplane.tcp.accept import Acceptor
from appliance.dataplane.tcp.dial import Dial, DialOwner
from appliance.dataplane.tcp.relay import Pair
from appliance.model.stats import Connection, ListenerStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.balance import BackendState
    from appliance.dataplane.context import Context
    from appliance.model.network import Listener


class TcpListener(DialOwner):
    """Serves one destination until `stop`, and its pairs until they end."""

    def __init__(
        self,
        context: Context,
        listener: Listener,
        *,
        on_empty: Callable[[TcpListener], None],
        sock: SocketType | None = None,
    ) -> None:
        """Open the port, or take over `sock`, and accept. Raises OSError.

        `on_empty` is called once nothing is left after `stop`.
        """
        super().__init__(
            context.epoll,
            context.pipes,
            context.shares,
            context.dials,
            context.namespaces,
            listener.destination,
            Balancer(listener.backends, refused=context.refused),
        )
        self._on_empty = on_empty
        self.port = listener.port
        self.vip = b""
        """The virtual IP and port, packed, that lead to this listener through doors."""
        self.pairs: set[Pair] = set()
        self.accepted = 0
        self.refused = 0
        self.failed = 0
        self.stopped = False
        self._wanted = listener
        self._access = Access.of(listener)
        listening = sock or listen(listener.port)[0]
        label = str(listener.destination)
        self.acceptor = Acceptor(context, label, listening, self.take, standstill=context.standstill)

    @property
    def active(self) -> int:
        """Pairs, and clients that still wait for a backend."""
        return len(self.pairs) + len(self.dials.of(self))

    def swap(self, listener: Listener) -> None:
        """Take new callers, peers and backends; reset the pairs and dials that these do not allow."""
        same_access = listener.same_access(self._wanted)
        self._wanted = listener
        self.balancer.update(listener.backends)
        if same_access:
            return
        self._access = Access.of(listener)
        for pair in self._access.recheck(self.pairs):
            pair.reset()
        for dial in self._access.recheck(self.dials.of(self)):
            dial.cancel()

    def rekey(self, former: str, key: str) -> None:
        """Know what a caller has by another key of its own, if that may call; otherwise leave it to the next swap."""
        self._access.rekey(self.pairs, former, key)
        self._access.rekey(self.dials.of(self), former, key)

    def stop(self) -> None:
        """Accept the clients that wait already, then no more. Pairs go on."""
        if self.stopped:
            return
        self.acceptor.stop()
        self.stopped = True
        self._check_empty()

    def end_pairs(self) -> None:
        """Reset what is left."""
        for dial in self.dials.of(self):
            dial.cancel()
        for pair in list(self.pairs):
            pair.reset()

    def take(self, client: SocketType, key: str) -> bool:
        """Dial for a client that was accepted and calls by this key; return whether to accept another."""
        self.accepted += 1
        caller = self._access.caller(key)
        if caller is None:
            self.refused += 1
            reset_on_close(client)
            self.epoll.close(client)
        else:
            Dial(self, client, caller).start()
        return not self.acceptor.pausing

    def dialling(self) -> None:
        """Note that a dial is under way, so there was a file descriptor for it."""
        self.acceptor.starving = False

    def connected(self, dial: Dial, sock: SocketType, events: int) -> None:
        """Join the client to its backend, whose socket has these events."""
        self.balancer.succeeded(dial.state)
        pair = Pair(self, dial.caller, dial.state, dial.client, sock)
        self.pairs.add(pair)
        epoll = self.epoll
        epoll.handlers[pair.backend.fd] = pair.backend
        try:
            epoll.add(pair.client.fd, pair.client)
        except OSError as error:
            self.on_no_descriptors(error)
            pair.reset()
            return
        if events & NOT_OUT:
            pair.backend.ready(events)

    def unreachable(self) -> None:
        """Note that a client was reset because no backend could be reached."""
        self.failed += 1
        self.cancelled()

    def cancelled(self) -> None:
        """Note that a client was reset for another reason."""
        self._check_empty()

    def on_no_descriptors(self, error: OSError) -> None:
        """Accept no more for a moment."""
        self.acceptor.on_no_descriptors(error)

    def forget(self, pair: Pair) -> None:
        """Note that a pair has ended."""
        self.pairs.discard(pair)
        if self.stopped:
            self._check_empty()

    def _check_empty(self) -> None:
        """Tell the owner if nothing is left of a stopped listener."""
        if self.stopped and not self.active:
            self._on_empty(self)

    def stats(self) -> ListenerStats:
        """Return the counters; those of backends include the pairs that are open."""
        moving: dict[BackendState, tuple[int, int]] = {}
        stuck = stuck_bytes = 0
        for pair in self.pairs:
            if pair.stuck:
                stuck += 1
                stuck_bytes += pair.stuck
            to, back = moving.get(pair.state, (0, 0))
            moving[pair.state] = (to + pair.client.moved, back + pair.backend.moved)
        return ListenerStats(
            destination=self.destination,
            port=self.port,
            accepted=self.accepted,
            refused=self.refused,
            failed=self.failed,
            active=self.active,
            starved=self.acceptor.starved,
            stuck=stuck,
            stuck_bytes=stuck_bytes,
            given_up=self.given_up,
            backends=self.balancer.stats(moving),
        )

    def connections(self) -> Iterable[Connection]:
        """Return the open pairs."""
        now = time.monotonic()
        states = self.balancer.states
        return [
            Connection(
                destination=self.destination,
                client=_peer_name(pair.client.sock, pair.caller.host),
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


def _peer_name(sock: SocketType, host: str) -> str:
    try:
        return f"{host}:{sock.getpeername()[1]}"
    except OSError:
        return host  # reset a moment ago
