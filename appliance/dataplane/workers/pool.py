"""The data plane in processes of its own (`face.Plane`): sockets are opened here and handed to workers to serve.

- Every listening socket is opened here, and stays open here while it is wanted: what arrives while a worker is being
  replaced waits in its queue.
- Each worker has a TCP socket of its own for a destination, so that a connection wakes one of them and not all; while
  it is being replaced another one accepts from it, too. UDP sessions live in one process: that of a destination known
  by its port, and for all that comes through a door that of the door, known by its namespace. DNS is served by the
  first, whose one cache and one table of ready answers do for all.
- A worker is told only what changes; a new one the whole of it.
- Counters are added up over the workers, those of ended ones included as they were last told.
"""

from __future__ import annotations

from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from appliance.dataplane import api as face
from appliance.dataplane.dns import server as dnsserver
from appliance.dataplane.tcp.accept import listen as listen_tcp
from appliance.dataplane.udp import sockets as udpsocket
from appliance.dataplane.workers import merge
from appliance.dataplane.workers import messages as orders
from appliance.dataplane.workers.process import Member
from appliance.model.names import Destination, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from io import FileIO
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.api import Question, T
    from appliance.dataplane.dns.server import DnsSockets
    from appliance.model.network import Door, Listener, NetnsId, Zone
    from appliance.model.stats import ListenerStats

UPSTREAMS_LOOK = 5.0
"""Seconds between looks whether the host's resolvers have changed."""
REPORT = 10.0
"""Seconds between reports of counters that nobody asked for: more than this is not lost with a worker."""
MISSING = 1.0
"""Seconds until a socket is handed over again that got lost for want of file descriptors."""
PING: Question[int] = face.LEFT
"""Any question will do to know that what was said before has been heard."""


class Workers:
    """All listeners and the DNS server, in `number` processes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        number: int,
        command: Sequence[str],
        dns_upstreams: Callable[[], Sequence[tuple[str, int]]],
        dns_port: int,
        idle_udp: float = 60.0,
    ) -> None:
        """`command` starts a worker, with the descriptor of its channel added. Nothing runs before `start`."""
        self._loop = loop
        self._dns_upstreams = dns_upstreams
        self._dns_port = dns_port
        self._idle_udp = idle_udp
        self._members = [
            Member(loop, index, command, born=self._tell_all, take=self._take, died=self._forget)
            for index in range(number)
        ]
        self._listeners: dict[Destination, Listener] = {}
        self._sockets: dict[Destination, tuple[SocketType, ...]] = {}
        """One for each worker; for UDP only one."""
        self._doors: dict[NetnsId, tuple[Door, tuple[SocketType, ...], SocketType, FileIO]] = {}
        self._up: set[Member] = set()
        """Those that have heard all that they should serve."""
        self._covers: dict[int, Member] = {}
        """Who accepts for the worker at that place as well, while that is not up."""
        self._retired: dict[tuple[Protocol, int], list[SocketType]] = {}
        """Closed, until every worker has heard of it; until then nobody else could open the port.
        In a list of its own each time, because the same sockets may be retired, used again, and retired again."""
        self._dns: dict[IPv4Address, DnsSockets] = {}
        self._zone: Zone | None = None
        self._upstreams: tuple[tuple[str, int], ...] = ()
        self._past: dict[Destination, ListenerStats] = {}
        self._past_dns: Mapping[str, int] = {}
        """What workers that have ended had counted; the same for `_past`."""
        self._numbers = count()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._closed = False
        self.restarted = 0

    @property
    def pids(self) -> tuple[int | None, ...]:
        """The workers' processes; None for one that is being replaced."""
        return tuple(member.pid for member in self._members)

    def start(self) -> None:
        """Start the processes. Raises OSError."""
        self._upstreams = tuple(self._dns_upstreams())
        for member in self._members:
            member.start()
        self._every(UPSTREAMS_LOOK, self._look_at_upstreams)
        self._every(REPORT, self._report)

    def open_listener(self, listener: Listener) -> None:
        """Serve a destination. Raises OSError (EADDRINUSE when something else holds the port)."""
        if listener.destination in self._listeners:
            self.swap_listener(listener)
            return
        self._open(listener)

    def swap_listener(self, listener: Listener) -> None:
        """Take new callers, peers and backends. Raises OSError when the port is a new one and cannot be had."""
        destination = listener.destination
        if self._listeners[destination].port != listener.port:
            former = self._sockets[destination], self._listeners[destination].port
            self._open(listener)
            self._retire(destination, *former)
            return
        only_backends = listener.same_access(self._listeners[destination])
        self._listeners[destination] = listener
        self._tell(
            orders.Balance(destination, listener.backends) if only_backends else orders.Serve(listener, opened=False),
        )

    def close_listener(self, destination: Destination) -> None:
        """Accept no more; pairs go on until they end by themselves or by `end_pairs`."""
        former = self._listeners.pop(destination, None)
        if former is not None:
            self._past.pop(destination, None)
            self._tell(orders.Close(destination))
            self._retire(destination, self._sockets.pop(destination), former.port)

    def end_pairs(self, destination: Destination) -> None:
        """Reset what is left of closed listeners of this destination."""
        for member in self._members:
            member.send(orders.EndPairs(destination))

    @property
    def accepting(self) -> int:
        """How many TCP sockets a door needs: one for each worker."""
        return len(self._members)

    def open_door(self, door: Door, tcp: tuple[SocketType, ...], udp: SocketType, netns: FileIO) -> None:
        """Serve these sockets, which are inside of a namespace, and dial from there; `netns` is its file."""
        self.close_door(door.netns)
        self._doors[door.netns] = door, tcp, udp, netns
        for member in self._members:
            self._hand_over_door(member, door.netns)
        for place in self._covers:
            self._hand_over_cover(place, door.netns)

    def close_door(self, netns: NetnsId) -> None:
        """Accept nothing more inside of that namespace, and let go of it; pairs go on."""
        if netns in self._doors:
            _, tcp, udp, file = self._doors.pop(netns)
            for member in self._members:
                member.send(orders.CloseDoor(netns))
            _close(*tcp, udp, file)

    def set_dns_addresses(self, addresses: frozenset[IPv4Address]) -> None:
        """Serve DNS on exactly these addresses. Raises OSError after having opened those that it could."""
        first = self._members[0]
        for address in self._dns.keys() - addresses:
            _close(*self._dns.pop(address))
        first.send(orders.ServeDns(frozenset(self._dns)))
        failed: list[tuple[IPv4Address, OSError]] = []
        for address in sorted(addresses - self._dns.keys()):
            try:
                self._dns[address] = dnsserver.listen(address, self._dns_port)
            except OSError as error:
                failed.append((address, error))
            else:
                self._hand_over_dns(first, address, self._dns)
        if failed:
            raise dnsserver.cannot_listen(failed, self._dns_port)

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone."""
        self._zone = zone
        self._members[0].send(orders.SetZone(zone))

    def ask(self, question: Question[T], tell: Callable[[T], None]) -> None:
        """Call `tell` once every worker has answered or ended."""
        number = next(self._numbers)
        answers: list[Any] = []
        waiting = {member.index for member in self._members if member.pid is not None}

        def answered(member: Member, value: Any) -> None:
            waiting.discard(member.index)
            if value is not None:
                answers.append(value)
                member.remember(question, value)
            if not waiting:
                tell(self._together(question, answers))

        if not waiting:
            tell(self._together(question, answers))
        for member in self._members:
            if member.pid is not None:
                member.asked[number] = partial(answered, member)
                member.send(orders.Ask(number, question))

    def stop(self) -> None:
        """Accept nothing more, anywhere, and answer no DNS; pairs go on."""
        for member in self._members:
            member.send(orders.Stop())
        for _, tcp, udp, file in self._doors.values():
            _close(*tcp, udp, file)
        _close(*_all(self._sockets), *_all(self._dns))
        for known in (self._listeners, self._sockets, self._past, self._dns, self._doors):
            known.clear()

    def close(self) -> None:
        """End everything at once."""
        if self._closed:
            return
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for _, tcp, udp, file in self._doors.values():
            _close(*tcp, udp, file)
        for member in self._members:
            member.close()
        for member in self._members:
            member.finish()
        _close(*_all(self._sockets), *_all(self._retired), *_all(self._dns))

    # Sockets

    def _open(self, listener: Listener) -> None:
        key = listener.destination.protocol, listener.port
        sockets = tuple(self._retired.pop(key)) if key in self._retired else self._listen(*key)
        self._listeners[listener.destination] = listener
        self._sockets[listener.destination] = sockets
        self._past.pop(listener.destination, None)
        for member in self._members:
            self._hand_over(member, listener.destination)
        for place in self._covers:
            self._hand_over_cover(place, listener.destination)

    def _listen(self, protocol: Protocol, port: int) -> tuple[SocketType, ...]:
        return listen_tcp(port, len(self._members)) if protocol is Protocol.TCP else (udpsocket.listen(port),)

    def _hand_over(self, member: Member, destination: Destination) -> None:
        sockets, listener = self._sockets[destination], self._listeners[destination]
        if destination.protocol is Protocol.TCP:
            member.send(orders.Serve(listener, opened=True), (sockets[member.index],))
        elif self._has(member, listener.port):
            member.send(orders.Serve(listener, opened=True), sockets)
        else:
            member.send(orders.Serve(listener, opened=True, elsewhere=True))

    def _hand_over_door(self, member: Member, netns: NetnsId) -> None:
        door, tcp, udp, file = self._doors[netns]
        datagrams = self._has(member, netns.inode)
        sockets = (tcp[member.index], file, *((udp,) if datagrams else ()))
        member.send(orders.OpenDoor(door, udp=datagrams), sockets)

    def _has(self, member: Member, number: int) -> bool:
        """Whether it is the worker that has the UDP socket of such a number."""
        return member is self._members[number % len(self._members)]

    def _hand_over_cover(self, place: int, what: Destination | NetnsId) -> None:
        if not isinstance(what, Destination):
            _, sockets, *_ = self._doors[what]
        elif what.protocol is Protocol.TCP:
            sockets = self._sockets[what]
        else:
            return
        self._covers[place].send(orders.Cover(what, place), (sockets[place],))

    def _retire(self, destination: Destination, sockets: tuple[SocketType, ...], port: int) -> None:
        key = destination.protocol, port
        retired = self._retired[key] = list(sockets)

        def heard(_: object) -> None:
            if self._retired.get(key) is retired:
                del self._retired[key]
                _close(*sockets)

        self.ask(PING, heard)

    def _tell(self, order: object) -> None:
        for member in self._members:
            member.send(order)

    # Workers

    def _tell_all(self, member: Member) -> None:
        """Tell a new process the whole of it."""
        member.send(orders.Start(dns_port=self._dns_port, idle_udp=self._idle_udp, alone=len(self._members) == 1))
        for destination in self._listeners:
            self._hand_over(member, destination)
        for netns in self._doors:
            self._hand_over_door(member, netns)
        if member.index == 0:
            member.send(orders.SetUpstreams(self._upstreams))
            if self._zone is not None:
                member.send(orders.SetZone(self._zone))
            for number, address in enumerate(self._dns, start=1):
                self._hand_over_dns(member, address, list(self._dns)[:number])
        member.send(orders.Ready())
        number = next(self._numbers)
        member.asked[number] = partial(self._is_up, member)
        member.send(orders.Ask(number, PING))

    def _is_up(self, member: Member, answer: int | None) -> None:
        if answer is not None:
            self._up.add(member)
            self._cover()

    def _cover(self) -> None:
        """Have another worker accept for each that is not up; connections wait if none is."""
        for place, member in enumerate(self._members):
            nexts = (*self._members[place:], *self._members[:place])
            by = next((each for each in nexts if each in self._up), member)
            former = self._covers.pop(place, member)
            if by is not member:
                self._covers[place] = by
            if by is former:
                continue
            if former is not member:
                former.send(orders.Uncover(place))
            if by is not member:
                for destination in self._listeners:
                    self._hand_over_cover(place, destination)
                for netns in self._doors:
                    self._hand_over_cover(place, netns)

    def _hand_over_dns(self, member: Member, address: IPv4Address, all_so_far: Iterable[IPv4Address]) -> None:
        member.send(orders.ServeDns(frozenset(all_so_far), address), self._dns[address])

    def _take(self, member: Member, message: Any) -> None:
        match message:
            case orders.Answer():
                member.asked.pop(message.number)(message.value)
            case orders.Missing():
                self._loop.call_later(MISSING, self._hand_over_again, member, message.what, message.place)

    def _hand_over_again(self, member: Member, what: Destination | NetnsId, place: int | None) -> None:
        if (what not in self._listeners and what not in self._doors) or self._closed:
            return
        if place is not None:
            if self._covers.get(place) is member:
                self._hand_over_cover(place, what)
        elif isinstance(what, Destination):
            self._hand_over(member, what)
        else:
            self._hand_over_door(member, what)

    def _forget(self, member: Member) -> None:
        """Keep what an ended worker has counted, and wait for its answers no longer."""
        self.restarted += 1
        self._up.discard(member)
        self._cover()
        for destination, stats in member.stats.items():
            if destination in self._listeners:
                parts = [merge.ended(stats), *([self._past[destination]] if destination in self._past else [])]
                self._past[destination] = merge.merged(self._listeners[destination], parts)
        self._past_dns = merge.summed((self._past_dns, merge.lasting(member.dns_stats)))
        member.stats, member.dns_stats = {}, {}
        asked, member.asked = member.asked, {}
        for answered in asked.values():
            answered(None)

    # Answers

    def _together(self, question: Question[Any], answers: list[Any]) -> Any:
        match question:
            case face.STATS:
                return self._merged_stats()
            case face.DNS_STATS:
                return merge.summed((self._past_dns, *(member.dns_stats for member in self._members)))
            case face.CONNECTIONS:
                return tuple(connection for answer in answers for connection in answer)
            case _:
                return sum(answers)

    def _merged_stats(self) -> tuple[ListenerStats, ...]:
        told = [self._past, *(member.stats for member in self._members)]
        return tuple(
            merge.merged(listener, [stats[destination] for stats in told if destination in stats])
            for destination, listener in self._listeners.items()
        )

    # Now and then

    def _every(self, seconds: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self._timers[do] = self._loop.call_later(seconds, again)

        self._timers[do] = self._loop.call_later(seconds, again)

    def _look_at_upstreams(self) -> None:
        found = tuple(self._dns_upstreams())
        if found != self._upstreams:
            self._upstreams = found
            self._members[0].send(orders.SetUpstreams(found))

    def _report(self) -> None:
        self.ask(face.STATS, lambda _: None)
        self.ask(face.DNS_STATS, lambda _: None)


def _all(sockets: Mapping[Any, Iterable[SocketType]]) -> Iterator[SocketType]:
    return chain.from_iterable(sockets.values())


def _close(*sockets: SocketType | FileIO) -> None:
    for sock in sockets:
        sock.close()
