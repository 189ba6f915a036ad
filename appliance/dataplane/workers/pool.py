"""The data plane in processes of its own (`api.DataPlane`): sockets are opened here and handed to workers to serve.

- Every listening socket is opened here, and stays open here while it is wanted: what arrives while a worker is being
  replaced waits in its queue.
- Each worker has a TCP socket of its own for a destination, so that a connection wakes one of them and not all. While
  that worker is being replaced, another one accepts from its socket, too.
- A UDP session lives in one worker. The port of the destination says in which, or the namespace of the door through
  which the client came.
- The first worker serves DNS: its one cache and one table of ready answers are enough for all.
- A worker is told only what changes; a new one is told everything.
- Counters are added up over the workers, including those that have ended, as they last reported.
"""

from __future__ import annotations

from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from appliance.dataplane import api
from appliance.dataplane.sockets import listen as listen_tcp
from appliance.dataplane.udp.places import IDLE
from appliance.dataplane.udp.sockets import listen as listen_udp
from appliance.dataplane.workers import merge, messages
from appliance.dataplane.workers.pooleddns import PooledDns
from appliance.dataplane.workers.process import WorkerProcess
from appliance.model.names import Destination, Protocol
from appliance.model.sources import CallerSources

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from io import FileIO
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.api import Question, T
    from appliance.model.network import Door, Listener, NetnsId, Zone
    from appliance.model.stats import ListenerStats

UPSTREAMS_CHECK = 5.0
"""Seconds between checks whether the host's resolvers have changed."""
REPORT = 10.0
"""Seconds between reports of counters by every worker: at most this much is lost with one."""
MISSING = 1.0
"""Seconds until a socket that was lost for want of file descriptors is handed over again."""
PING: Question[int] = api.LEFT
"""An answer to any question shows that what was sent before it has been received."""


class WorkerPool:
    """All listeners and the DNS server, in `number` processes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        number: int,
        command: Sequence[str],
        dns_upstreams: Callable[[], Sequence[tuple[str, int]]],
        dns_port: int,
        idle_udp: float = IDLE,
        refused: Callable[[IPv4Address], None] | None = None,
    ) -> None:
        """`command` starts a worker, with the descriptor of its channel added. Nothing runs before `start`.

        `refused` is told the address of a container that has failed after it had served.
        """
        self._refused = refused
        self._loop = loop
        self._dns_upstreams = dns_upstreams
        self._dns_port = dns_port
        self._idle_udp = idle_udp
        self._workers = [
            WorkerProcess(loop, slot, command, on_start=self._tell_all, on_message=self._take, on_exit=self._on_exit)
            for slot in range(number)
        ]
        self._listeners: dict[Destination, Listener] = {}
        self._sockets: dict[Destination, tuple[SocketType, ...]] = {}
        """One for each worker; for UDP only one."""
        self._doors: dict[NetnsId, tuple[Door, tuple[SocketType, ...], SocketType, FileIO]] = {}
        self._up: set[WorkerProcess] = set()
        """Those that have received all that they must serve."""
        self._accepting_for: dict[int, WorkerProcess] = {}
        """The worker that accepts for the one in each slot, while that one is not up."""
        self._retired: dict[tuple[Protocol, int], list[SocketType]] = {}
        """Sockets of closed listeners, until every worker has let go of them; before, nothing else can open the port.
        In a new list each time, because the same sockets may be retired, used again, and retired again."""
        self._dns = PooledDns(self._workers[0], dns_port)
        self._sources = CallerSources()
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
        return tuple(worker.pid for worker in self._workers)

    def start(self) -> None:
        """Start the processes. Raises OSError."""
        self._upstreams = tuple(self._dns_upstreams())
        for worker in self._workers:
            worker.start()
        self._every(UPSTREAMS_CHECK, self._check_upstreams)
        self._every(REPORT, self._report)

    def open_listener(self, listener: Listener) -> None:
        """Serve a destination. Raises OSError (EADDRINUSE when another program holds the port)."""
        if listener.destination in self._listeners:
            self.swap_listener(listener)
            return
        self._open(listener)

    def swap_listener(self, listener: Listener) -> None:
        """Take new callers, peers and backends; the port is that of the open listener."""
        only_backends = listener.same_access(self._listeners[listener.destination])
        self._listeners[listener.destination] = listener
        self._tell(
            messages.SetBackends(listener.destination, listener.backends)
            if only_backends
            else messages.Serve(listener, opened=False),
        )

    def close_listener(self, destination: Destination) -> None:
        """Accept no more; pairs go on until they end by themselves or by `end_pairs`."""
        former = self._listeners.pop(destination, None)
        if former is not None:
            self._past.pop(destination, None)
            self._tell(messages.Close(destination))
            self._retire(destination, self._sockets.pop(destination), former.port)

    def end_pairs(self, destination: Destination) -> None:
        """Reset what is left of closed listeners of this destination."""
        for worker in self._workers:
            worker.send(messages.EndPairs(destination))

    @property
    def accepting(self) -> int:
        """How many TCP sockets a door needs: one for each worker."""
        return len(self._workers)

    def open_door(self, door: Door, tcp: tuple[SocketType, ...], udp: SocketType, netns: FileIO) -> None:
        """Serve these sockets, which belong to a namespace, and dial from there; `netns` is its file."""
        self.close_door(door.netns)
        self._doors[door.netns] = door, tcp, udp, netns
        for worker in self._workers:
            self._hand_over_door(worker, door.netns)
        for slot in self._accepting_for:
            self._hand_over_for(slot, door.netns)

    def move_door(self, door: Door) -> None:
        """Know by another address what comes through an open door, and the pairs that came of it."""
        if door.netns in self._doors:
            _, tcp, udp, file = self._doors[door.netns]
            self._doors[door.netns] = door, tcp, udp, file
            self._tell(messages.MoveDoor(door))

    def close_door(self, netns: NetnsId) -> None:
        """Accept nothing more in that namespace, and let go of it; pairs go on."""
        if netns in self._doors:
            _, tcp, udp, file = self._doors.pop(netns)
            for worker in self._workers:
                worker.send(messages.LeaveDoor(netns))
            _close(*tcp, udp, file)

    def set_sources(self, sources: CallerSources) -> None:
        """Dial from inside namespaces from these addresses, by caller; what is connected goes on."""
        self._sources = sources
        self._tell(messages.DialFrom(sources))

    def open_dns_door(self, door: Door, sockets: tuple[socket.socket, ...]) -> None:
        """Answer DNS on these sockets of a namespace as well; without any on those that it has there."""
        self._dns.open_door(door, sockets)

    def close_dns_door(self, netns: NetnsId) -> None:
        """Answer DNS no more in that namespace."""
        self._dns.close_door(netns)

    def confirm(self) -> None:
        """Say that all that Docker has done is known; from the first time on, what comes to the host waits for it."""
        self._tell(messages.Confirm())

    def set_dns_addresses(self, addresses: frozenset[IPv4Address]) -> None:
        """Serve DNS on exactly these addresses. Raises OSError after having opened those that it could."""
        self._dns.set_addresses(addresses)

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone."""
        self._dns.set_zone(zone)

    def ask(self, question: Question[T], tell: Callable[[T], None]) -> None:
        """Call `tell` once every worker has answered or ended."""
        number = next(self._numbers)
        answers: list[Any] = []
        waiting = {worker.slot for worker in self._workers if worker.pid is not None}

        def answered(worker: WorkerProcess, value: Any) -> None:
            waiting.discard(worker.slot)
            if value is not None:
                answers.append(value)
                worker.remember(question, value)
            if not waiting:
                tell(self._together(question, answers))

        if not waiting:
            tell(self._together(question, answers))
        for worker in self._workers:
            if worker.pid is not None:
                worker.asked[number] = partial(answered, worker)
                worker.send(messages.Ask(number, question))

    def stop(self) -> None:
        """Accept nothing more, anywhere, and answer no DNS; pairs go on."""
        for worker in self._workers:
            worker.send(messages.Stop())
        self._close_doors()
        self._dns.close()
        _close(*_all(self._sockets))
        for known in (self._listeners, self._sockets, self._past, self._doors):
            known.clear()

    def close(self) -> None:
        """End everything at once."""
        if self._closed:
            return
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._close_doors()
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.finish()
        self._dns.close()
        _close(*_all(self._sockets), *_all(self._retired))

    # Sockets

    def _close_doors(self) -> None:
        for _, tcp, udp, file in self._doors.values():
            _close(*tcp, udp, file)

    def _open(self, listener: Listener) -> None:
        key = listener.destination.protocol, listener.port
        sockets = tuple(self._retired.pop(key)) if key in self._retired else self._listen(*key)
        self._listeners[listener.destination] = listener
        self._sockets[listener.destination] = sockets
        self._past.pop(listener.destination, None)
        for worker in self._workers:
            self._hand_over(worker, listener.destination)
        for slot in self._accepting_for:
            self._hand_over_for(slot, listener.destination)

    def _listen(self, protocol: Protocol, port: int) -> tuple[SocketType, ...]:
        return listen_tcp(port, len(self._workers)) if protocol is Protocol.TCP else (listen_udp(port),)

    def _hand_over(self, worker: WorkerProcess, destination: Destination) -> None:
        sockets, listener = self._sockets[destination], self._listeners[destination]
        if destination.protocol is Protocol.TCP:
            worker.send(messages.Serve(listener, opened=True), (sockets[worker.slot],))
        elif self._has_udp(worker, listener.port):
            worker.send(messages.Serve(listener, opened=True), sockets)
        else:
            worker.send(messages.Serve(listener, opened=True, doors_only=True))

    def _hand_over_door(self, worker: WorkerProcess, netns: NetnsId) -> None:
        door, tcp, udp, file = self._doors[netns]
        datagrams = self._has_udp(worker, netns.inode)
        sockets = (tcp[worker.slot], file, *((udp,) if datagrams else ()))
        worker.send(messages.ServeDoor(door, udp=datagrams), sockets)

    def _has_udp(self, worker: WorkerProcess, number: int) -> bool:
        """Whether it is the worker that has the UDP socket with this port or, for a door, this inode."""
        return worker is self._workers[number % len(self._workers)]

    def _hand_over_for(self, slot: int, what: Destination | NetnsId) -> None:
        if not isinstance(what, Destination):
            _, sockets, *_ = self._doors[what]
        elif what.protocol is Protocol.TCP:
            sockets = self._sockets[what]
        else:
            return
        self._accepting_for[slot].send(messages.AcceptFor(what, slot), (sockets[slot],))

    def _retire(self, destination: Destination, sockets: tuple[SocketType, ...], port: int) -> None:
        key = destination.protocol, port
        retired = self._retired[key] = list(sockets)

        def received(_: object) -> None:
            if self._retired.get(key) is retired:
                del self._retired[key]
                _close(*sockets)

        self.ask(PING, received)

    def _tell(self, message: object) -> None:
        for worker in self._workers:
            worker.send(message)

    # Workers

    def _tell_all(self, worker: WorkerProcess) -> None:
        """Tell a new process everything that it must serve."""
        worker.send(messages.Init(dns_port=self._dns_port, idle_udp=self._idle_udp, alone=len(self._workers) == 1))
        worker.send(messages.DialFrom(self._sources))
        for destination in self._listeners:
            self._hand_over(worker, destination)
        for netns in self._doors:
            self._hand_over_door(worker, netns)
        if worker.slot == 0:
            worker.send(messages.SetUpstreams(self._upstreams))
            self._dns.tell_all()
        worker.send(messages.Ready())
        number = next(self._numbers)
        worker.asked[number] = partial(self._is_up, worker)
        worker.send(messages.Ask(number, PING))

    def _is_up(self, worker: WorkerProcess, answer: int | None) -> None:
        if answer is not None:
            self._up.add(worker)
            self._accept_for_missing()

    def _accept_for_missing(self) -> None:
        """Have another worker accept for each that is not up; connections wait if none is."""
        for slot, worker in enumerate(self._workers):
            nexts = (*self._workers[slot:], *self._workers[:slot])
            by = next((each for each in nexts if each in self._up), worker)
            former = self._accepting_for.pop(slot, worker)
            if by is not worker:
                self._accepting_for[slot] = by
            if by is former:
                continue
            if former is not worker:
                former.send(messages.StopAcceptingFor(slot))
            if by is not worker:
                for destination in self._listeners:
                    self._hand_over_for(slot, destination)
                for netns in self._doors:
                    self._hand_over_for(slot, netns)

    def _take(self, worker: WorkerProcess, message: Any) -> None:
        match message:
            case messages.Answer():
                worker.asked.pop(message.number)(message.value)
            case messages.Refused():
                if self._refused is not None:
                    self._refused(message.address)
            case messages.Missing():
                self._loop.call_later(MISSING, self._hand_over_again, worker, message)

    def _hand_over_again(self, worker: WorkerProcess, missing: messages.Missing) -> None:
        what, slot = missing.what, missing.slot
        wanted = what in (self._dns.doors if missing.dns else self._doors) or what in self._listeners
        if not wanted or self._closed:
            return
        if missing.dns and not isinstance(what, Destination):
            self._dns.hand_over_door(what)
        elif slot is not None:
            if self._accepting_for.get(slot) is worker:
                self._hand_over_for(slot, what)
        elif isinstance(what, Destination):
            self._hand_over(worker, what)
        else:
            self._hand_over_door(worker, what)

    def _on_exit(self, worker: WorkerProcess) -> None:
        """Keep what an ended worker has counted, and wait for its answers no longer."""
        self.restarted += 1
        self._up.discard(worker)
        self._accept_for_missing()
        for destination, stats in worker.stats.items():
            if destination in self._listeners:
                parts = [merge.ended(stats), *([self._past[destination]] if destination in self._past else [])]
                self._past[destination] = merge.merged(self._listeners[destination], parts)
        self._past_dns = merge.summed((self._past_dns, merge.lasting(worker.dns_stats)))
        worker.stats, worker.dns_stats = {}, {}
        asked, worker.asked = worker.asked, {}
        for answered in asked.values():
            answered(None)

    # Answers

    def _together(self, question: Question[Any], answers: list[Any]) -> Any:
        match question:
            case api.STATS:
                return self._merged_stats()
            case api.DNS_STATS:
                return merge.summed((self._past_dns, *(worker.dns_stats for worker in self._workers)))
            case api.CONNECTIONS:
                return tuple(connection for answer in answers for connection in answer)
            case api.SHARES:
                return merge.shares(share for answer in answers for share in answer)
            case _:
                return sum(answers)

    def _merged_stats(self) -> tuple[ListenerStats, ...]:
        told = [self._past, *(worker.stats for worker in self._workers)]
        return tuple(
            merge.merged(listener, [stats[destination] for stats in told if destination in stats])
            for destination, listener in self._listeners.items()
        )

    # Timers

    def _every(self, seconds: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self._timers[do] = self._loop.call_later(seconds, again)

        self._timers[do] = self._loop.call_later(seconds, again)

    def _check_upstreams(self) -> None:
        found = tuple(self._dns_upstreams())
        if found != self._upstreams:
            self._upstreams = found
            self._workers[0].send(messages.SetUpstreams(found))

    def _report(self) -> None:
        self.ask(api.STATS, lambda _: None)
        self.ask(api.DNS_STATS, lambda _: None)


def _all(sockets: Mapping[Any, Iterable[SocketType]]) -> Iterator[SocketType]:
    return chain.from_iterable(sockets.values())


def _close(*sockets: SocketType | FileIO) -> None:
    for sock in sockets:
        sock.close()
