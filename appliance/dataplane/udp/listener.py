"""UDP: one socket per listener, and for each client address a session with a connected socket to its backend.

Rules of this file:

- Whether the caller is allowed (access.py), and which backend serves it, is decided once per session. A datagram of an
  open session is forwarded.
- Replies leave from the listener's port and from the address that the client asked. IP_PKTINFO tells which one that
  was; from the first such datagram on a socket at that address does (`AddressSocket`), because control data costs a
  tenth of a round trip.
- A client that asks through the door in its namespace (door.py) gets a socket of its own there with its second datagram
  (`ClientSocket`), and its answers from that.
- Which sessions stay, for how long, and which ones give way, places.py says.
- A session whose backend goes drains: it stays open for a second for what that backend still answers. The client's next
  datagram opens another.
- Any error on a session's socket ends the session; the client's next datagram opens another. An ICMP error makes the
  balancer leave the backend out for a while. Where no other one is left the client is told (refusal.py).
- A wake-up reads one datagram while traffic is sparse, because a second read that finds nothing costs a tenth of a
  datagram's CPU time, and up to BATCH while it is dense: never more, so that no socket starves the others.
- Only OSError can happen here, and none reaches the loop.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.access import Access
from appliance.dataplane.balance import Balancer
from appliance.dataplane.loop.epoll import IN
from appliance.dataplane.sockets import NO_DESCRIPTORS, NO_PORT
from appliance.dataplane.udp.client import AddressSocket, PortSocket, open_client_socket
from appliance.dataplane.udp.places import ANSWERED, IDLE, RETURNED, Places
from appliance.dataplane.udp.session import Session, SessionOwner
from appliance.dataplane.udp.sockets import BUFFER, PASSING, asked_address, bind_address, connect, listen
from appliance.model.stats import Connection, ListenerStats
from appliance.retry import Schedule

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.access import Caller
    from appliance.dataplane.balance import BackendState
    from appliance.dataplane.context import Context
    from appliance.dataplane.udp.client import WorkloadSockets
    from appliance.dataplane.udp.session import Key
    from appliance.dataplane.udp.sockets import Client, Control
    from appliance.model.network import Listener

log = structlog.get_logger()

SESSIONS = 1024
"""Most brief sessions of one listener. Each holds one file descriptor or two, of which small machines allow 20,000:
shares.py bounds what all listeners have."""
MAX_ADDRESS_SOCKETS = 16
"""Most addresses of this host at which a listener has sockets: containers' networks are few."""
EJECT_SECONDS = Schedule((2.0, 5.0, 10.0))
"""As for connections, but longer: a client without an answer asks again after a second or so, and must not find the
same backend again."""
DRAIN_SECONDS = 1.0
"""For how long a backend that goes may still answer what it was asked."""
TRIES = 3
"""Most backends tried for one datagram."""


class UdpListener(SessionOwner):
    """The socket of one UDP destination, and its sessions."""

    def __init__(
        self,
        context: Context,
        listener: Listener,
        *,
        idle: float = IDLE,
        limit: int = SESSIONS,
        on_empty: Callable[[UdpListener], None] = lambda _: None,
        sock: SocketType | None = None,
        doors_only: bool = False,
    ) -> None:
        """Open the port, or take over `sock`. Raises OSError (EADDRINUSE).

        A session without any answer ends after `idle` seconds without a datagram; there are at most `limit` brief ones.
        `on_empty` is called once nothing is left after `stop`. With `doors_only` another process serves the port.
        """
        balancer = Balancer(listener.backends, pauses=EJECT_SECONDS, refused=context.refused)
        super().__init__(context.loop, balancer, listener.destination)
        self._shares = context.shares
        self._refusals = context.refusals
        self._epoll = context.epoll
        self._standstill = context.standstill
        self._namespaces: Mapping[str, WorkloadSockets] = context.namespaces
        self._wanted = listener
        self.port = listener.port
        self._on_empty = on_empty
        self.accepted = 0
        self.refused = 0
        self.failed = 0
        self.stopped = False
        self._closed = False
        self._most_draining = limit
        self._timer: asyncio.TimerHandle | None = None
        self._sessions: dict[Key, Session] = {}
        self._places = Places(context.loop, context.shares, limit=limit, idle=idle)
        self._draining: set[Session] = set()
        self._access = Access.of(listener)
        self._address_sockets: dict[str, AddressSocket | None] = {}
        """By address; None for one at which no socket can be opened."""
        self._starving = False
        """Whether the last session failed for want of a file descriptor; it is logged once."""
        self._port_socket = None if doors_only else PortSocket(self, sock or listen(listener.port))
        if self._port_socket is not None:
            self._epoll.add(self._port_socket.sock.fileno(), self._port_socket, IN)

    @property
    def active(self) -> int:
        """Number of sessions."""
        return len(self._sessions) + len(self._draining)

    def swap(self, listener: Listener) -> None:
        """Take new callers, peers and backends; end the sessions that these no longer allow."""
        gone = set(self.balancer.update(listener.backends))
        if not listener.same_access(self._wanted):
            self._access = Access.of(listener)
        self._wanted = listener
        for session in self._access.recheck(self._all()):
            self.end(session)
        for session in self._all():
            if session.state in gone:
                self._drain(session)

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
        return ListenerStats(
            destination=self.destination,
            port=self.port,
            accepted=self.accepted,
            refused=self.refused,
            failed=self.failed,
            active=self.active,
            evicted=self._places.evicted,
            given_up=self.given_up,
            dropped=self.dropped,
            backends=self.balancer.stats(),
        )

    def connections(self) -> tuple[Connection, ...]:
        """Return the open sessions."""
        now = self.loop.time()
        return tuple(
            Connection(
                destination=self.destination,
                client=f"{s.caller.host}:{s.client[1]}",
                backend="{}:{}".format(*s.state.address),
                label=s.state.backend.label,
                bytes_in=s.bytes_in,
                bytes_out=s.bytes_out,
                age=now - s.started,
                draining=self.stopped or s.draining,
            )
            for s in self._all()
        )

    def pairs_to(self, address: IPv4Address) -> int:
        """Return the number of sessions whose backend has this address."""
        return sum(s.state.backend.address == address for s in self._all())

    def leave(self, netns: str) -> None:
        """Let go of a namespace: drain the sessions of its clients and of its servers, which may get others."""
        for session in tuple(self._sessions.values()):
            if session.key[2:] == (netns,) or session.state.netns == netns:
                self._drain(session)

    def on_answer(self, session: Session) -> None:
        """Note that the session's backend is there."""
        self.balancer.alive(session.state)
        self._places.move(session, ANSWERED)

    def on_refused(self, session: Session, error: OSError) -> None:
        """Leave out the backend that refused this session's datagrams, and end the session.

        Its client asks another one with its next datagram, if there is one; otherwise it is told.
        """
        if session.draining:
            self.end(session)
            return
        if not session.state.failures and not session.state.spare:
            log.warning(
                "UDP backend refuses datagrams; left out for a while",
                destination=str(self.destination),
                backend="{}:{}".format(*session.state.address),
                error=error.strerror,
            )
        self.balancer.failed(session.state)
        if not self.balancer.can_serve(local_only=session.caller.local_only):
            self._refuse(session.key, session.client, session.caller, session.arrival, session.asked)
        own = session.client_socket
        if own is not None and own.session is session:
            self._drain(session)  # what the client has sent meanwhile is for another backend
        else:
            self.end(session)

    def take(self, size: int, client: Client, arrival: SocketType, asked: Control) -> bool:
        """Pass a client's datagram in BUFFER to its backend; return whether the client is served.

        It came in at the socket `arrival`; `asked` is its control data. No client is served while it is not known whose
        addresses are whose: a datagram may be lost.
        """
        if self._standstill.holds:
            return False
        session = self._sessions.get(client)
        if session is None:
            session = self._open(client, client, client[0], arrival, asked)
            if session is None:
                return False
            session.seen = size
        if session.arrival is not arrival or session.asked != asked:
            session.reply_from(arrival, asked)
        self.pass_on(session, size)
        return True

    def take_from_door(
        self, size: int, key: Key, client: Client, caller_key: str, arrival: SocketType, asked: Control
    ) -> None:
        """Pass a datagram in BUFFER that came through a door to its backend."""
        session = self._sessions.get(key)
        if session is None:
            session = self._open(key, client, caller_key, arrival, asked)
            if session is None:
                return
            session.seen = size
            session.reply_from(arrival, asked)
        elif not session.asked_again:
            session.asked_again = True
            self._open_client_socket(session, str(key[-1]))
        self.pass_on(session, size)

    def _open_client_socket(self, session: Session, netns: str) -> None:
        """Give the client a socket of its own, if one can be made; it is served without one as well."""
        namespace = self._namespaces.get(netns)
        own = None if namespace is None else open_client_socket(session, namespace)
        if own is not None:
            session.client_socket = own
            self._epoll.add(own.sock.fileno(), own, IN)

    def pass_on(self, session: Session, size: int) -> None:
        """Pass a datagram in BUFFER to the session's backend."""
        session.quiet = 0
        session.bytes_in += size
        session.state.bytes_in += size
        if ANSWERED <= session.standing <= RETURNED:
            self._places.move(session, session.standing + 1)
        try:
            session.sock.send(BUFFER[:size])
        except OSError as error:
            self._on_send_error(session, error, size)

    def renew(self, former: Session, tried: tuple[BackendState, ...] = ()) -> Session | None:
        """Open another session for the client of one that has ended or is about to."""
        self._remove(former)
        another = self._sessions.get(former.key)
        if another is None:
            host = former.caller.host
            another = self._open(former.key, former.client, host, former.arrival, former.asked, tried)
        if another is not None:
            another.take_over(former)
        return another

    def open_address_socket(self, sock: SocketType, asked: Control) -> bool:
        """Open a socket at the address that was asked; return whether it is a new one."""
        address = asked_address(asked)
        if address is None or address in self._address_sockets or len(self._address_sockets) >= MAX_ADDRESS_SOCKETS:
            return False
        try:
            opened = AddressSocket(self, bind_address(sock, (address, self.port)))
        except OSError:  # the address has just gone, or no descriptors are left: it works without one
            self._address_sockets[address] = None
            return False
        self._epoll.add(opened.sock.fileno(), opened, IN)
        self._address_sockets[address] = opened
        return True

    def _on_send_error(self, session: Session, error: OSError, size: int) -> None:
        # The ICMP error is about an earlier datagram; this one has not been sent.
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

    def _open(
        self,
        key: Key,
        client: Client,
        caller_key: str,
        arrival: SocketType | None,
        asked: Control,
        tried: tuple[BackendState, ...] = (),
    ) -> Session | None:
        caller = self._access.caller(caller_key)
        if caller is None or self.stopped:
            self.refused += 1
            return None
        while len(tried) < TRIES:
            state = self.balancer.pick(local_only=caller.local_only, tried=tried)
            if state is None:
                self._refuse(key, client, caller, arrival, asked)
                break
            try:
                sock = self._connect(state, caller.host)
            except Exception as error:  # noqa: BLE001 — whatever it is, another backend is tried
                if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
                    self._on_no_descriptors(error)
                    break
                if not (isinstance(error, OSError) and error.errno in NO_PORT):
                    self.balancer.failed(state)
                tried += (state,)
                continue
            fd = sock.fileno()
            if self._shares.is_crowded(fd) and not self._places.make_room(caller, fd):
                sock.close()
                self._on_no_descriptors(OSError(errno.EMFILE, "those that are left are for the control plane"))
                break
            return self._add(Session(self, key, client, caller, sock, state))
        self.failed += 1
        return None

    def _connect(self, state: BackendState, caller: str) -> SocketType:
        namespace = self._namespaces.get(state.netns)
        sock = None if namespace is None else namespace.dial_udp(state.address, caller)
        return connect(state.address, state.source) if sock is None else sock

    def _add(self, session: Session) -> Session:
        self._starving = False
        self._epoll.add(session.sock.fileno(), session, IN)
        self._sessions[session.key] = session
        self._shares.add(session.holding, session.caller, self.label)
        self._places.add(session, session.caller)
        self.accepted += 1
        session.state.opened += 1
        session.state.active += 1
        if self._timer is None:
            self._timer = self.loop.call_later(self._places.tick, self._on_tick)
        return session

    def _on_no_descriptors(self, error: OSError) -> None:
        if not self._starving:
            self._starving = True
            log.warning(
                "out of file descriptors; datagrams of new clients are dropped",
                destination=str(self.destination),
                error=str(error),
            )

    def _all(self) -> tuple[Session, ...]:
        return (*self._sessions.values(), *self._draining)

    def _drain(self, session: Session) -> None:
        """Give the client a new session with its next datagram; this one is for answers only."""
        if len(self._draining) >= self._most_draining:
            self.end(session)
            return
        self._remove(session)
        session.draining = True
        self._draining.add(session)
        self.loop.call_later(DRAIN_SECONDS, self._end_drained, session)

    def _end_drained(self, session: Session) -> None:
        if session in self._draining:
            self.end(session)

    def end(self, session: Session) -> None:
        """End this session now."""
        if session.closed:
            return
        session.closed = True
        self._shares.remove(session.holding)
        session.holding.release()
        if session.draining:
            self._draining.remove(session)
        else:
            self._remove(session)
        session.state.active -= 1
        self._epoll.close(session.sock)
        own = session.client_socket
        if own is not None and own.session is session:
            own.closed = True
            self._epoll.close(own.sock)
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self.stopped and not self.active:
            self._close()

    def _remove(self, session: Session) -> None:
        """Take a session out of the tables, if it is there."""
        if self._sessions.get(session.key) is not session:
            return
        del self._sessions[session.key]
        self._places.remove(session)

    def _refuse(self, key: Key, client: Client, caller: Caller, arrival: SocketType | None, asked: Control) -> None:
        """Tell a client that nobody takes what it has sent."""
        if len(key) > 2:
            if self._wanted.vip is not None:
                vip = (str(self._wanted.vip), self.destination.port)
                self._refusals.refuse(caller.host, str(key[-1]), client, vip)
        elif arrival is not None:
            address = asked_address(asked) or str(arrival.getsockname()[0])
            self._refusals.refuse(caller.host, "", client, (address, self.port))

    def _on_tick(self) -> None:
        for session in list(self._sessions.values()):
            self._places.age(session)
        self._timer = self.loop.call_later(self._places.tick, self._on_tick) if self._sessions else None

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._port_socket is not None:
            sock = self._port_socket.sock
            self._epoll.remove(sock.fileno())  # closing does not, where the parent has the same socket
            self._epoll.close(sock)
        for opened in self._address_sockets.values():
            if opened is not None:
                self._epoll.close(opened.sock)
        self._on_empty(self)
