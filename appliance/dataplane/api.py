"""What the control plane asks of the data plane, in this process (inprocess.py) or in workers (workers/pool.py).

Commands return at once. Questions are answered through a callback, because workers take a moment; `app.bridge.answer`
makes that awaitable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from io import FileIO
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.model.names import Destination
    from appliance.model.network import Door, Listener, NetnsId, Zone
    from appliance.model.sources import CallerSources
    from appliance.model.stats import Connection, ListenerStats, ShareStats

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A method of `InProcess` that changes nothing, and its arguments."""

    method: str
    arguments: tuple[Any, ...] = ()


STATS: Question[tuple[ListenerStats, ...]] = Question("stats")
"""The counters of the listeners that are open."""
CONNECTIONS: Question[tuple[Connection, ...]] = Question("connections")
"""All open pairs and sessions."""
DNS_STATS: Question[Mapping[str, int]] = Question("dns_stats")
"""The DNS server's counters; all only grow, except those that end in `_now`."""
SHARES: Question[tuple[ShareStats, ...]] = Question("shares")
"""Callers that hold, or held, more than their share."""
LEFT: Question[int] = Question("left")
"""How many TCP pairs closed listeners still have."""


def pairs_to(address: IPv4Address) -> Question[int]:
    """How many open pairs and sessions lead to that address."""
    return Question("pairs_to", (address,))


class DataPlane(Protocol):
    """All listeners and the DNS server."""

    @property
    def restarted(self) -> int:
        """How many workers ended by themselves and were replaced."""

    def start(self) -> None:
        """Begin to run. Raises OSError."""

    def open_listener(self, listener: Listener) -> None:
        """Serve a destination. Raises OSError (EADDRINUSE when another program holds the port)."""

    def swap_listener(self, listener: Listener) -> None:
        """Take new callers, peers and backends; the port is that of the open listener."""

    def close_listener(self, destination: Destination) -> None:
        """Accept no more; pairs go on until they end by themselves or by `end_pairs`."""

    def end_pairs(self, destination: Destination) -> None:
        """Reset what is left of closed listeners of this destination."""

    @property
    def accepting(self) -> int:
        """How many TCP sockets a door needs."""

    def open_door(self, door: Door, tcp: tuple[SocketType, ...], udp: SocketType, netns: FileIO) -> None:
        """Serve these sockets, which belong to a namespace, and dial from there; `netns` is its file.

        The data plane closes them. A door that is open in that namespace is replaced.
        """

    def move_door(self, door: Door) -> None:
        """Know by another address what comes through an open door, and the pairs that came of it."""

    def close_door(self, netns: NetnsId) -> None:
        """Accept nothing more in that namespace, and let go of it; pairs go on."""

    def set_sources(self, sources: CallerSources) -> None:
        """Dial from inside namespaces from these addresses, by caller; what is connected goes on."""

    def open_dns_door(self, door: Door, sockets: tuple[socket.socket, ...]) -> None:
        """Answer DNS on these sockets as well, which belong to the namespace of a door that is open.

        The data plane closes them. Without sockets it keeps those that it has there, for a workload whose address may
        have changed.
        """

    def close_dns_door(self, netns: NetnsId) -> None:
        """Answer DNS no more in that namespace."""

    def confirm(self) -> None:
        """Say that all that Docker has done is known; from the first time on, what comes to the host waits for it."""

    def set_dns_addresses(self, addresses: frozenset[IPv4Address]) -> None:
        """Serve DNS on exactly these addresses. Raises OSError after having opened those that it could."""

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone."""

    def ask(self, question: Question[T], tell: Callable[[T], None]) -> None:
        """Call `tell` once with the answer, perhaps before this returns."""

    def stop(self) -> None:
        """Accept nothing more, anywhere, and answer no DNS; pairs go on."""

    def close(self) -> None:
        """End everything at once."""
