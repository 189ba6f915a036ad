"""UDP: one socket per listener, and for each client address a session with a connected socket to its backend.

Rules of this file:

- Who may call, and which backend serves, is decided once per session; a datagram of an open session is forwarded.
- Replies leave from the listener's port and from the address that the client asked: told by IP_PKTINFO, and from the
  first such datagram on by a socket at that address (`AddressSocket`), as control data costs a tenth of a round trip.
- Who asks through the door in its namespace (udpdoor.py) gets, with its second datagram, a socket of its own there
  (`ClientSocket`), and answers from there.
- A session whose backend goes is parted from its client at once, and stays open for a second for what that backend
  still answers: the client's next datagram opens another.
- Any error on a session's socket ends the session; the client's next datagram opens another. An ICMP error makes the
  backend sit out for a while, like a refused TCP connection.
- A wake-up reads one datagram while traffic is sparse, because a second read that finds nothing costs a tenth of a
  datagram's CPU time, and up to BATCH while it is dense: never more, so that no socket starves the others.
- Only OSError can happen here, and none reaches the loop.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.balance import Balancer
from appliance.dataplane.loop.epoll import IN
from appliance.dataplane.tcp.dial import NO_DESCRIPTORS
from appliance.dataplane.udp.session import BATCH, PROBE, AddressSocket, Session, open_client_socket
from appliance.dataplane.udp.sockets import (
    BUFFER,
    BUFFERS,
    PASSING,
    PKTINFO_SPACE,
    asked_address,
    beside,
    connect,
    listen,
)
from appliance.model.stats import BackendStats, Connection, ListenerStats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.balance import BackendState
    from appliance.dataplane.loop.epoll import EpollSet
    from appliance.dataplane.udp.session import Key, Within
    from appliance.dataplane.udp.sockets import Client, Control
    from appliance.model.network import Listener

log = structlog.get_logger()

SESSIONS = 1024
"""Most sessions of one listener: each holds one file descriptor or two, of which small machines allow 20,000."""
FACES = 16
"""Most addresses of this host at which a listener has sockets: containers' networks are few."""
EJECT_SECONDS = (2.0, 5.0, 10.0)
"""As for connections, but longer: who was not answered asks again after a second or so, and must not find it again."""
TICKS = 4
"""The idle timeout is checked this often in its length: a session ends after 1 to 1 + 1/TICKS times the timeout."""
PARTING = 1.0
"""Seconds in which a backend that is to go may answer what it was asked before."""
TRIES = 3
"""Most backends tried for one datagram."""
SECOND_CHANCES = 16
"""Most busy sessions passed over when one has to go."""


class UdpListener:
    """The socket of one UDP destination, and its sessions."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        epoll: EpollSet,
        listener: Listener,
        *,
        idle: float = 60.0,
        limit: int = SESSIONS,
        on_empty: Callable[[UdpListener], None] = lambda _: None,
        sock: SocketType | None = None,
        insides: Mapping[str, Within] = MappingProxyType({}),
        elsewhere: bool = False,
    ) -> None:
        """Open the port, or take over `sock`. Raises OSError (EADDRINUSE).

        A session ends after `idle` seconds without a datagram; there are at most `limit` of them. `on_empty` is called
        once nothing is left after `stop`. From within `insides` backends are asked; with `elsewhere` another process
        serves the port, and this one only what comes through doors.
        """
        self.loop = loop
        self._epoll = epoll
        self._insides = insides
        self._wanted = listener
        self.destination = listener.destination
        self.port = listener.port
        self._on_empty = on_empty
        self.balancer = Balancer(listener.backends, pauses=EJECT_SECONDS)
        self.accepted = 0
        self.refused = 0
        self.failed = 0
        self.evicted = 0
        """Sessions ended early to make room for new ones."""
        self.dropped = 0
        """Datagrams that could not be passed on."""
        self.stopped = False
        self._closed = False
        self._tick = idle / TICKS
        self._limit = limit
        self._timer: asyncio.TimerHandle | None = None
        self._sessions: dict[Key, Session] = {}
        self._parting: set[Session] = set()
        self._access = _access(listener)
        self._address_sockets: dict[str, AddressSocket | None] = {}
        """By address; None where there can be none."""
        self._wakes = 0
        self._dense = False
        self._short = False
        """Whether the last session failed for want of a socket."""
        self._sock = None if elsewhere else sock or listen(listener.port)
        if self._sock is not None:
            epoll.add(self._sock.fileno(), self, IN)

    @property
    def active(self) -> int:
        """Number of sessions."""
        return len(self._sessions) + len(self._parting)

    def swap(self, listener: Listener) -> None:
        """Take new callers, peers and backends; end the sessions that these no longer allow."""
        gone = set(self.balancer.update(listener.backends))
        if not listener.same_access(self._wanted):
            self._access = _access(listener)
        self._wanted = listener
        access = self._access
        for session in self._all():
            local_only = access.get(session.caller)
            if local_only is None or (local_only and not session.state.backend.local):
                self.end(session)
            elif session.state in gone:
                self._part(session)

    def stop(self) -> None:
        """Open no more sessions. Those that are open go on, and the port is held until the last one ends."""
        self.stopped = True
        self._close_if_empty()

    def end_pairs(self) -> None:
        """End every session."""
        for session in self._all():
            self.end(session)

    def stats(self) -> ListenerStats:
        """Return the counters so far."""
        now = monotonic()
        return ListenerStats(
            destination=self.destination,
            port=self.port,
            accepted=self.accepted,
            refused=self.refused,
            failed=self.failed,
            active=self.active,
            evicted=self.evicted,
            dropped=self.dropped,
            backends=tuple(
                BackendStats(
                    backend=s.backend,
                    opened=s.opened,
                    failed=s.failed,
                    active=s.active,
                    bytes_in=s.bytes_in,
                    bytes_out=s.bytes_out,
                    ejected=max(0.0, s.ejected_until - now),
                )
                for s in self.balancer.states.values()
            ),
        )

    def connections(self) -> tuple[Connection, ...]:
        """Return the open sessions."""
        now = self.loop.time()
        return tuple(
            Connection(
                destination=self.destination,
                client=f"{s.caller}:{s.client[1]}",
                backend="{}:{}".format(*s.state.address),
                label=s.state.backend.label,
                bytes_in=s.bytes_in,
                bytes_out=s.bytes_out,
                age=now - s.started,
                draining=self.stopped or s.parting,
            )
            for s in self._all()
        )

    def pairs_to(self, address: IPv4Address) -> int:
        """Return the number of sessions whose backend has this address."""
        return sum(s.state.backend.address == address for s in self._all())

    def leave(self, netns: str) -> None:
        """Let go of a namespace: part its clients from their sessions, and its servers, who may get others."""
        for session in tuple(self._sessions.values()):
            if session.key[2:] == (netns,) or session.state.inside == netns:
                self._part(session)

    def on_refused(self, session: Session, error: OSError) -> None:
        """Leave out the backend that refused this session's datagrams, and end the session."""
        if session.parting:
            self.end(session)
            return
        if not session.state.failures:
            log.warning(
                "udp backend refuses",
                destination=str(self.destination),
                backend="{}:{}".format(*session.state.address),
                error=error.strerror,
            )
        self.balancer.failed(session.state)
        if session.near is not None and session.near.session is session:
            self._part(session)  # what the client has sent meanwhile is for another backend
        else:
            self.end(session)

    def ready(self, _events: int) -> None:
        """Pass the clients' datagrams to their backends."""
        sock = self._sock
        if sock is None:
            return
        self._wakes += 1
        receive = sock.recvmsg_into
        count, most = 0, BATCH if self._dense or not self._wakes % PROBE else 1
        while count < most:
            try:
                size, asked, _, client = receive(BUFFERS, PKTINFO_SPACE)
            except OSError:  # nothing left, or an error that the kernel has now forgotten
                break
            count += 1
            if self.take(size, client, sock, asked) and self._open_address_socket(sock, asked):
                most = BATCH  # what is queued here came before what now comes in there
        self._dense = count > 1

    def fail(self) -> None:
        """Nothing to give up: the datagram whose handling failed is gone."""

    def take(self, size: int, client: Client, way: SocketType, asked: Control) -> bool:
        """Pass a client's datagram in BUFFER to its backend; return whether it may have one."""
        session = self._sessions.get(client) or self._open(client, client, client[0])
        if session is None:
            return False
        if session.way is not way or session.asked != asked:
            session.came(way, asked)
        self.pass_on(session, size)
        return True

    def take_inside(self, size: int, key: Key, client: Client, caller: str, way: SocketType, asked: Control) -> None:
        """Do that with one that came through the door of a namespace."""
        session = self._sessions.get(key)
        if session is None:
            session = self._open(key, client, caller)
            if session is None:
                return
            session.came(way, asked)
        elif not session.asked_again:
            session.asked_again = True
            self._open_client_socket(session, str(key[-1]))
        self.pass_on(session, size)

    def _open_client_socket(self, session: Session, netns: str) -> None:
        """Give the client a socket of its own; without, it works too."""
        inside = self._insides.get(netns)
        near = None if inside is None else open_client_socket(session, inside)
        if near is not None:
            session.near = near
            self._epoll.add(near.sock.fileno(), near, IN)

    def pass_on(self, session: Session, size: int) -> None:
        """Pass a datagram in BUFFER to the session's backend."""
        session.quiet = 0
        session.bytes_in += size
        session.state.bytes_in += size
        try:
            session.sock.send(BUFFER[:size])
        except OSError as error:
            self._on_send_error(session, error, size)

    def renew(self, former: Session, tried: tuple[BackendState, ...] = ()) -> Session | None:
        """Open another session for a client in the place of that one, which has ended or is about to."""
        if self._sessions.get(former.key) is former:
            del self._sessions[former.key]
        another = self._sessions.get(former.key) or self._open(former.key, former.client, former.caller, tried)
        if another is not None:
            another.succeed(former)
        return another

    def _open_address_socket(self, sock: SocketType, asked: Control) -> bool:
        """Have a socket at the address that was asked; return whether it is a new one."""
        address = asked_address(asked)
        if address is None or address in self._address_sockets or len(self._address_sockets) >= FACES:
            return False
        try:
            face = AddressSocket(self, beside(sock, (address, self.port)))
        except OSError:  # the address has just gone, or there are no descriptors left: it works without, too
            self._address_sockets[address] = None
            return False
        self._epoll.add(face.sock.fileno(), face, IN)
        self._address_sockets[address] = face
        return True

    def _on_send_error(self, session: Session, error: OSError, size: int) -> None:
        # What failed is an earlier datagram, as the ICMP error tells; this one has not been sent.
        if error.errno not in PASSING:
            another = self.renew(session, tried=(session.state,))
            self.on_refused(session, error)
            if another is not None:
                another.bytes_in += size
                another.state.bytes_in += size
                with suppress(OSError):
                    another.sock.send(BUFFER[:size])
                    return
        self.dropped += 1

    def _open(self, key: Key, client: Client, caller: str, tried: tuple[BackendState, ...] = ()) -> Session | None:
        local_only = self._access.get(caller)
        if local_only is None or self.stopped:
            self.refused += 1
            return None
        if len(self._sessions) >= self._limit:
            self._evict()
        while len(tried) < TRIES:
            state = self.balancer.pick(local_only=local_only, tried=tried)
            if state is None:
                break
            try:
                sock = self._connect(state)
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._on_no_descriptors(error)
                    break
                self.balancer.failed(state)
                tried += (state,)
                continue
            return self._add(Session(self, key, client, caller, sock, state))
        self.failed += 1
        return None

    def _connect(self, state: BackendState) -> SocketType:
        inside = self._insides.get(state.inside)
        sock = None if inside is None else inside.dial_udp(state.address)
        return connect(state.address, state.source) if sock is None else sock

    def _add(self, session: Session) -> Session:
        self._short = False
        self._epoll.add(session.sock.fileno(), session, IN)
        self._sessions[session.key] = session
        self.accepted += 1
        session.state.opened += 1
        session.state.active += 1
        if self._timer is None:
            self._timer = self.loop.call_later(self._tick, self._on_tick)
        return session

    def _on_no_descriptors(self, error: OSError) -> None:
        if not self._short:
            self._short = True
            log.warning("out of file descriptors; no udp session", destination=str(self.destination), error=str(error))

    def _all(self) -> tuple[Session, ...]:
        return (*self._sessions.values(), *self._parting)

    def _part(self, session: Session) -> None:
        """Give its client a new session with its next datagram; this one is for answers only."""
        if len(self._parting) >= self._limit:
            self.end(session)
            return
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        session.parting = True
        self._parting.add(session)
        self.loop.call_later(PARTING, self._end_parted, session)

    def _end_parted(self, session: Session) -> None:
        if session in self._parting:
            self.end(session)

    def end(self, session: Session) -> None:
        """End this session now."""
        if session.parting:
            self._parting.remove(session)
        elif self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        session.state.active -= 1
        self._epoll.close(session.sock)
        near = session.near
        if near is not None and near.session is session:
            near.closed = True
            self._epoll.close(near.sock)
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self.stopped and not self.active:
            self._close()

    def _evict(self) -> None:
        """End the oldest session that is not in use; all being in use, the oldest."""
        for _ in range(SECOND_CHANCES):
            session = next(iter(self._sessions.values()))
            if session.quiet:
                break
            session.quiet = 1
            self._sessions[session.key] = self._sessions.pop(session.key)
        self.evicted += 1
        self.end(next(iter(self._sessions.values())))

    def _on_tick(self) -> None:
        for session in list(self._sessions.values()):
            session.quiet += 1
            if session.quiet > TICKS:
                self.end(session)
        self._timer = self.loop.call_later(self._tick, self._on_tick) if self._sessions else None

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._epoll.remove(self._sock.fileno())  # closing does not, where the parent has the same socket
            self._epoll.close(self._sock)
        for face in self._address_sockets.values():
            if face is not None:
                self._epoll.close(face.sock)
        self._on_empty(self)


def _access(listener: Listener) -> dict[str, bool]:
    """Return by source address whether only local backends serve it; who is not in it is refused."""
    access = dict.fromkeys(map(str, listener.peers), True)
    access.update(dict.fromkeys(map(str, listener.callers), False))
    return access
