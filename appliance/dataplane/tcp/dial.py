"""From an accepted client to a pair: choosing a backend, connecting to it, trying another when that fails."""

from __future__ import annotations

import errno
import os
import socket
import time
from socket import SocketType
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.holding import Holding
from appliance.dataplane.loop.epoll import ERR, HUP
from appliance.dataplane.sockets import KEEPALIVE, NO_PORT, NONBLOCKING, bind_source, reset_on_close
from appliance.dataplane.tcp.relay import PairOwner

if TYPE_CHECKING:
    import asyncio

    from appliance.dataplane.access import Caller
    from appliance.dataplane.balance import BackendState, Balancer
    from appliance.dataplane.loop.epoll import EpollSet
    from appliance.dataplane.namespace import NamespaceSockets
    from appliance.dataplane.shares import Shares
    from appliance.dataplane.tcp.pipes import PipePool
    from appliance.model.names import Destination

log = structlog.get_logger()

MOST_BACKENDS = 3
"""Backends tried for one client."""
TIMEOUT = 3.0
"""Seconds in which a backend must accept that is not paused."""
SILENCE = 10.0
"""Seconds between words of the log about want of ports."""
SWEEP = 0.5
"""Seconds between checks of the dials under way."""


class DialOwner(PairOwner):
    """What dials need of a listener, and report to it. A class has one native base only, so this also owns pairs."""

    def __init__(
        self,
        epoll: EpollSet,
        pipes: PipePool,
        shares: Shares,
        dials: Dials,
        namespaces: dict[str, NamespaceSockets],
        destination: Destination,
        balancer: Balancer,
    ) -> None:
        super().__init__(epoll, pipes, shares, destination)
        self.dials = dials
        self.namespaces = namespaces
        self.balancer = balancer

    def dialling(self) -> None:
        """Note that a dial is under way, so there was a file descriptor for it."""
        raise NotImplementedError

    def connected(self, dial: Dial, sock: SocketType, events: int) -> None:
        """Join the client to its backend, whose socket has these events."""
        raise NotImplementedError

    def unreachable(self) -> None:
        """Note that a client was reset because no backend could be reached."""
        raise NotImplementedError

    def cancelled(self) -> None:
        """Note that a client was reset for another reason."""
        raise NotImplementedError

    def on_no_descriptors(self, error: OSError) -> None:
        """Note that there is no file descriptor for a backend's socket."""
        raise NotImplementedError


class Dial(Holding):
    """One client that waits for a backend."""

    __slots__ = ("_sock", "_tried", "began", "caller", "client", "owner", "patient", "state")

    _sock: SocketType
    state: BackendState

    def __init__(self, owner: DialOwner, client: SocketType, caller: Caller) -> None:
        super().__init__()
        self.owner = owner
        self.client = client
        self.caller = caller
        self._tried: tuple[BackendState, ...] = ()
        self.began = 0.0
        self.patient = False
        """Whether it has waited for a program that is paused."""

    def give_up(self) -> None:
        """Reset the client, whose caller holds more than its share."""
        self.owner.given_up += 1
        self.cancel()

    def start(self) -> None:
        """Connect to a backend; when there is none left, reset the client."""
        owner = self.owner
        balancer = owner.balancer
        while len(self._tried) < MOST_BACKENDS:
            state = balancer.pick(local_only=self.caller.local_only, tried=self._tried)
            if state is None:
                break
            try:
                sock, code = _connect(owner.namespaces.get(state.netns), state, self.caller.host)
                self._sock = sock
                owner.epoll.add(sock.fileno(), self)
            except OSError as error:
                owner.on_no_descriptors(error)
                break
            if code in (0, errno.EINPROGRESS):
                self.state = state
                owner.dialling()
                owner.dials.add(self)
                return
            owner.epoll.close(sock)
            self._failed(state, code)
        self._reset_client()
        owner.unreachable()

    def ready(self, events: int) -> None:
        """Hand the client over if the backend has accepted; try another backend if it has not."""
        self.owner.dials.discard(self)
        if events & (ERR | HUP):
            self.retry(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        else:
            self.owner.connected(self, self._sock, events)

    def late(self) -> None:
        """Wait on for a backend that is paused while there is no other, then dial anew; give up one that is not.

        The kernel of a paused program takes connections until their queue is full. Then it is asked again, less and
        less often, and the dialling one gives up after some two minutes (tcp_syn_retries, ip-sysctl(7)): as anywhere.
        """
        balancer = self.owner.balancer
        paused = self.state.paused and balancer.states.get(self.state.address) is self.state
        if paused:
            other = balancer.pick(local_only=self.caller.local_only, tried=self._tried)
            if other is None or other.paused:
                self.patient = True
                return
        self.owner.dials.discard(self)
        if paused or self.patient:
            self.patient = False
            self.owner.epoll.close(self._sock)
            self.start()
        else:
            self.retry(errno.ETIMEDOUT)

    def retry(self, code: int) -> None:
        """Give up this backend for the reason `code` (an errno) and try another one."""
        self.owner.epoll.close(self._sock)
        self._failed(self.state, code)
        self.start()

    def fail(self) -> None:
        """Reset the client after an error in the handler."""
        self.cancel()

    def cancel(self) -> None:
        """Reset the client; the backend is not to blame."""
        self.owner.dials.discard(self)
        self.owner.epoll.close(self._sock)
        self._reset_client()
        self.owner.cancelled()

    def _failed(self, state: BackendState, code: int) -> None:
        self._tried += (state,)
        if code in NO_PORT:
            self.owner.dials.tell_of_ports(str(self.owner.destination), state, code)
            return
        self.owner.balancer.failed(state)
        if state.failures == 1:
            log.info(
                "backend left out for a while",
                destination=str(self.owner.destination),
                backend=state.backend.label,
                address=f"{state.address[0]}:{state.address[1]}",
                cause=os.strerror(code),
            )

    def _reset_client(self) -> None:
        reset_on_close(self.client)
        self.owner.epoll.close(self.client)


def _connect(namespace: NamespaceSockets | None, state: BackendState, caller: str) -> tuple[SocketType, int]:
    """Begin to connect, from the backend's own namespace if that has a door; return the socket and the errno.

    Whatever goes wrong, another backend is tried. Raises OSError when no socket can be made.
    """
    dialled = None if namespace is None else namespace.dial(state.address, caller)
    if dialled is not None:
        return dialled
    sock = SocketType(socket.AF_INET, NONBLOCKING, 0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in KEEPALIVE:
        sock.setsockopt(*option)
    if state.source is not None:
        try:
            bind_source(sock, state.source)
        except OSError as error:
            return sock, error.errno or errno.EADDRNOTAVAIL
    try:
        return sock, sock.connect_ex(state.address)
    except Exception:  # noqa: BLE001 — an address that no socket takes, such as port 99999
        return sock, errno.EINVAL


class Dials:
    """All dials under way, oldest first, so that none waits longer than TIMEOUT."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._dials: dict[Dial, None] = {}
        self._told = -SILENCE
        self._timer: asyncio.TimerHandle | None = None

    def add(self, dial: Dial) -> None:
        """Begin to watch."""
        dial.began = time.monotonic()
        self._dials[dial] = None
        owner = dial.owner
        owner.shares.add(dial, dial.caller, owner.label)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP, self._sweep)

    def discard(self, dial: Dial) -> None:
        """Watch no longer."""
        self._dials.pop(dial, None)
        dial.owner.shares.remove(dial)

    def of(self, owner: DialOwner) -> list[Dial]:
        """Return those of one listener."""
        return [dial for dial in self._dials if dial.owner is owner]

    def tell_of_ports(self, destination: str, state: BackendState, code: int) -> None:
        """Log that this host could not dial, which says nothing of the backend."""
        now = time.monotonic()
        if now - self._told >= SILENCE:
            self._told = now
            log.warning(
                "no address and port to dial a backend from",
                destination=destination,
                backend=state.backend.label,
                address=f"{state.address[0]}:{state.address[1]}",
                cause=os.strerror(code),
            )

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
            dial.late()
        self._timer = self._loop.call_later(SWEEP, self._sweep) if self._dials else None
