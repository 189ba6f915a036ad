"""The data plane in one process: plain calls with plain values, so that it can run in another one (workers/)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.dataplane.context import Context
from appliance.dataplane.dns.server import NONE_OPENED, DnsServer
from appliance.dataplane.namespace import NamespaceSockets
from appliance.dataplane.sockets import packed_destination
from appliance.dataplane.tcp.door import TcpDoor
from appliance.dataplane.tcp.listener import TcpListener
from appliance.dataplane.udp.door import UdpDoor
from appliance.dataplane.udp.listener import UdpListener
from appliance.dataplane.udp.places import IDLE
from appliance.model.names import Destination, Protocol

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from io import FileIO
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.api import Question, T
    from appliance.dataplane.dns.server import DnsSockets
    from appliance.model.network import Door, Listener, NetnsId, Zone
    from appliance.model.sources import CallerSources
    from appliance.model.stats import Connection, ListenerStats, ShareStats


class InProcess:
    """All listeners and the DNS server (`api.DataPlane`)."""

    restarted = 0
    accepting = 1

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        dns_upstreams: Callable[[], Sequence[tuple[str, int]]],
        dns_port: int,
        idle_udp: float = IDLE,
        refused: Callable[[IPv4Address], None] | None = None,
    ) -> None:
        """`idle_udp` is the seconds after which a silent UDP session without any answer ends.

        `refused` is told the address of a container that has failed after it had served.
        """
        self._idle_udp = idle_udp
        self._context = Context(loop, refused=refused)
        self._listeners: dict[Destination, TcpListener | UdpListener] = {}
        self._draining: set[TcpListener | UdpListener] = set()
        self._tcp_doors: dict[NetnsId, TcpDoor] = {}
        self._tcp_by_vip: dict[bytes, TcpListener] = {}
        """By virtual IP and port, packed: what TCP doors lead to."""
        self._udp_doors: dict[NetnsId, UdpDoor] = {}
        self._udp_by_port: dict[int, UdpListener] = {}
        """By port on the host: what UDP doors lead to."""
        self.dns = DnsServer(loop, port=dns_port, upstreams=dns_upstreams, namespaces=self._context.namespaces)

    @property
    def active(self) -> int:
        """Pairs and UDP sessions, those of closed listeners included."""
        return sum(listener.active for listener in self._all())

    def start(self) -> None:
        """Nothing to do: it runs with the loop."""

    def serves(self, destination: Destination) -> bool:
        """Whether it is open."""
        return destination in self._listeners

    def open_listener(self, listener: Listener, sock: SocketType | None = None, *, doors_only: bool = False) -> None:
        """Serve a destination, on `sock` if that is open already; with `doors_only` not on its port.

        Raises OSError (EADDRINUSE when another program holds the port).
        """
        if listener.destination in self._listeners:
            self.swap_listener(listener)
            return
        self._listeners[listener.destination] = self._open(listener, sock, doors_only=doors_only)
        self._route_to(listener)

    def swap_listener(self, listener: Listener) -> None:
        """Take new callers, peers and backends; the port is the same. Allowed pairs go on, also to backends that went.

        A destination that moves to another port is closed and opened (plan/diff.py).
        """
        self._listeners[listener.destination].swap(listener)
        self._route_to(listener)

    def close_listener(self, destination: Destination) -> None:
        """Accept no more; pairs go on until they end by themselves or by `end_pairs`."""
        listener = self._listeners.pop(destination, None)
        if listener is not None:
            self._unroute(listener)
            self._retire(listener)

    def accept_for(self, what: Destination | NetnsId, slot: int, sock: SocketType) -> None:
        """Accept for another worker, from its socket for a listener or door, until `stop_accepting_for`."""
        served = self._listeners.get(what) if isinstance(what, Destination) else self._tcp_doors.get(what)
        if isinstance(served, TcpListener | TcpDoor):
            served.acceptor.accept_for(slot, sock)
        else:
            sock.close()

    def stop_accepting_for(self, slot: int) -> None:
        """Leave that worker's sockets to it."""
        for served in (*self._listeners.values(), *self._tcp_doors.values()):
            if isinstance(served, TcpListener | TcpDoor):
                served.acceptor.stop_accepting_for(slot)

    def open_door(self, door: Door, tcp: Sequence[SocketType], udp: SocketType | None, netns: FileIO) -> None:
        """Accept from this one TCP socket, which belongs to a namespace, and dial from there; `netns` is its file.

        Without `udp` another process takes what comes in by UDP.
        """
        self.close_door(door.netns)
        (sock,) = tcp
        self._context.namespaces[str(door.netns)] = NamespaceSockets(door, netns, self._context.sources)
        self._tcp_doors[door.netns] = TcpDoor(self._context, door, sock, self._tcp_by_vip)
        if udp is not None:
            self._udp_doors[door.netns] = UdpDoor(self._context.epoll, door, udp, self._udp_by_port)

    def move_door(self, door: Door) -> None:
        """Know by another address what comes through an open door, and the pairs that came of it.

        Its UDP sessions end with the former address, and its next datagrams open others.
        """
        tcp, udp = self._tcp_doors.get(door.netns), self._udp_doors.get(door.netns)
        if tcp is None:
            return
        former = tcp.caller
        tcp.move(door)
        if udp is not None:
            udp.move(door)
        self._context.namespaces[str(door.netns)].move(door)
        for listener in self._all():
            if isinstance(listener, TcpListener):
                listener.rekey(former, str(door.caller))

    def close_door(self, netns: NetnsId) -> None:
        """Accept nothing more in that namespace, and let go of it; pairs go on."""
        door = self._tcp_doors.pop(netns, None)
        if door is None:
            return
        door.stop()
        self._context.namespaces.pop(str(netns)).close()
        udp = self._udp_doors.pop(netns, None)
        if udp is not None:
            udp.close()
        for listener in list(self._all()):
            if isinstance(listener, UdpListener):
                listener.leave(str(netns))

    def open_dns_door(self, door: Door, sockets: Sequence[socket.socket]) -> None:
        """Answer DNS on these sockets of a namespace as well; without any on those that it has there."""
        self.dns.open_door(str(door.netns), str(door.caller), sockets)

    def close_dns_door(self, netns: NetnsId) -> None:
        """Answer DNS no more in that namespace."""
        self.dns.close_door(str(netns))

    def end_pairs(self, destination: Destination) -> None:
        """Reset what is left of closed listeners of this destination."""
        for listener in list(self._draining):
            if listener.destination == destination:
                listener.end_pairs()

    def pairs_to(self, address: IPv4Address) -> int:
        """Return how many open pairs and sessions lead to that address."""
        return sum(listener.pairs_to(address) for listener in self._all())

    def set_sources(self, sources: CallerSources) -> None:
        """Dial from inside namespaces from these addresses, by caller; what is connected goes on."""
        self._context.sources.set(sources)

    def confirm(self) -> None:
        """Say that all that Docker has done is known; from the first time on, what comes to the host waits for it."""
        self._context.standstill.confirm()

    def set_dns_addresses(
        self, addresses: frozenset[IPv4Address], opened: Mapping[IPv4Address, DnsSockets] = NONE_OPENED
    ) -> None:
        """Serve DNS on exactly these addresses, on the sockets of `opened` where they are open already.

        Raises OSError after having opened those that it could.
        """
        self.dns.set_addresses(addresses, opened)

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone."""
        self.dns.set_zone(zone)

    def stats(self) -> tuple[ListenerStats, ...]:
        """Return the counters of the listeners that are open."""
        return tuple(listener.stats() for listener in self._listeners.values())

    def connections(self) -> tuple[Connection, ...]:
        """Return all open pairs and sessions."""
        return tuple(connection for listener in self._all() for connection in listener.connections())

    def dns_stats(self) -> Mapping[str, int]:
        """Return the DNS server's counters."""
        return self.dns.stats()

    def shares(self) -> tuple[ShareStats, ...]:
        """Return the callers that hold, or held, more than their share."""
        return self._context.shares.stats()

    def left(self) -> int:
        """Return how many TCP pairs closed listeners still have; UDP sessions end by silence and need no waiting."""
        return sum(listener.active for listener in self._draining if isinstance(listener, TcpListener))

    def ask(self, question: Question[T], tell: Callable[[T], None]) -> None:
        """Call `tell` with the answer."""
        tell(getattr(self, question.method)(*question.arguments))

    def stop(self) -> None:
        """Accept nothing more, anywhere, and answer no DNS; pairs go on."""
        for door in self._tcp_doors.values():
            door.stop()
        for destination in list(self._listeners):
            self.close_listener(destination)
        self.dns.close()

    def close(self) -> None:
        """End everything at once."""
        self.stop()
        for listener in list(self._draining):
            listener.end_pairs()
        for netns in list(self._tcp_doors):
            self.close_door(netns)
        self._context.close()

    def _all(self) -> Iterator[TcpListener | UdpListener]:
        yield from self._listeners.values()
        yield from self._draining

    def _open(self, listener: Listener, sock: SocketType | None, *, doors_only: bool) -> TcpListener | UdpListener:
        if listener.destination.protocol is Protocol.TCP:
            return TcpListener(self._context, listener, on_empty=self._forget, sock=sock)
        for former in list(self._draining):
            if isinstance(former, UdpListener) and former.port == listener.port:
                former.end_pairs()  # its sessions need the socket, and so hold the port
        return UdpListener(
            self._context, listener, idle=self._idle_udp, on_empty=self._forget, sock=sock, doors_only=doors_only
        )

    def _route_to(self, listener: Listener) -> None:
        """Let doors lead to this listener."""
        served = self._listeners[listener.destination]
        if isinstance(served, UdpListener):
            self._udp_by_port[listener.port] = served
        elif listener.vip is not None:
            vip = packed_destination(listener.vip, listener.destination.port)
            if vip != served.vip:
                self._unroute(served)
                served.vip = vip
            self._tcp_by_vip[vip] = served

    def _unroute(self, listener: TcpListener | UdpListener) -> None:
        """Let doors lead to it no more."""
        if isinstance(listener, UdpListener):
            if self._udp_by_port.get(listener.port) is listener:
                del self._udp_by_port[listener.port]
        elif self._tcp_by_vip.get(listener.vip) is listener:
            del self._tcp_by_vip[listener.vip]

    def _retire(self, listener: TcpListener | UdpListener) -> None:
        self._draining.add(listener)
        listener.stop()

    def _forget(self, listener: TcpListener | UdpListener) -> None:
        self._draining.discard(listener)
