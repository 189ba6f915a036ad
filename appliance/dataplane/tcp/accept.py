"""Listening TCP sockets, and accepting from them: of a listener's port, or of a door inside a namespace."""

from __future__ import annotations

import socket
from socket import SocketType
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.loop.epoll import IN, EpollSet
from appliance.dataplane.tcp.dial import KEEPALIVE, NO_DESCRIPTORS, NONBLOCKING, Dials
from appliance.dataplane.tcp.pipes import PipePool

if TYPE_CHECKING:
    import asyncio

    from appliance.dataplane.namespace import NamespaceSockets

log = structlog.get_logger()

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn."""
ACCEPTS = 16
"""Most connections accepted at a time, so that one entrance does not hold up the others."""
OWN = -1
"""The place of an entrance's own socket among those from which it accepts; others' have their numbers."""
PAUSE = 0.2
"""Seconds without accepting after the process or the host ran out of file descriptors."""
IP_TRANSPARENT = 19
"""From linux/in.h: a socket that is handed what was sent to other addresses (ip(7))."""


class Shared:
    """What all listeners and doors of one process have in common."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.epoll = EpollSet(loop)
        self.pipes = PipePool()
        self.dials = Dials(loop)
        self.insides: dict[str, NamespaceSockets] = {}
        """Namespaces from within which workloads are dialled, by the text of their NetnsId."""

    def close(self) -> None:
        """Release everything; no entrance and no pair may be open any more."""
        self.dials.close()
        self.epoll.shut()
        self.pipes.close()


class ListenSocket:
    """A socket of an entrance, at which clients wait."""

    def __init__(self, entrance: Acceptor, sock: SocketType) -> None:
        self.sock = sock
        self._entrance = entrance
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
                    self._entrance.pause(error)
                    return
                continue  # that client is gone already, or an error of its network (accept(2)): the next one
            # The descriptor itself blocks; MSG_DONTWAIT on each call saves two system calls to change that.
            if not self._entrance.take(SocketType(socket.AF_INET, NONBLOCKING, 0, fd), host):
                return


class Acceptor:
    """Accepts from one socket, and from those of other processes that it covers."""

    def __init__(self, shared: Shared, label: str, sock: SocketType) -> None:
        """`label` says in logs what it is the entrance to."""
        self.epoll = shared.epoll
        self._loop = shared.loop
        self._label = label
        self.starved = 0
        """How often accepting paused for want of file descriptors."""
        self.stopped = False
        self.starving = False
        """Whether the last attempt to get a file descriptor failed; so that it is logged once."""
        self._resume: asyncio.TimerHandle | None = None
        self._acceptors = {OWN: ListenSocket(self, sock)}
        self._watch()

    def take(self, client: SocketType, host: str) -> bool:
        """Do something with a client that was accepted, whose address is `host`; return whether to accept another."""
        raise NotImplementedError

    def accept_for(self, slot: int, sock: SocketType) -> None:
        """Accept from the socket of another process, too, until `stop_accepting_for`."""
        self.stop_accepting_for(slot)
        self._acceptors[slot] = ListenSocket(self, sock)
        if self._resume is None:
            self._watch()

    def stop_accepting_for(self, slot: int) -> None:
        """Leave that process's socket to it."""
        acceptor = self._acceptors.pop(slot, None)
        if acceptor is not None:
            self._close(acceptor)

    def stop(self) -> None:
        """Accept those who wait already, then no more."""
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

    @property
    def pausing(self) -> bool:
        """Whether it accepts nobody at present."""
        return self._resume is not None

    def pause(self, error: OSError) -> None:
        """Accept no more for a moment: there are no file descriptors left."""
        self.starved += 1
        if not self.starving:
            self.starving = True
            log.warning("out of file descriptors; accepting pauses", destination=self._label, error=str(error))
        self.rest()

    def rest(self) -> None:
        """Accept no more for a moment."""
        if self._resume is None and not self.stopped:
            for acceptor in self._acceptors.values():
                self.epoll.remove(acceptor.sock.fileno())
            self._resume = self._loop.call_later(PAUSE, self._go_on)

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

    def _close(self, acceptor: ListenSocket) -> None:
        self.epoll.remove(acceptor.sock.fileno())  # closing does not, where another process has the same socket
        self.epoll.close(acceptor.sock)


def listen(
    port: int, number: int = 1, address: str = "0.0.0.0", *, transparent: bool = False
) -> tuple[SocketType, ...]:
    """Open listening sockets, whose options those that they accept inherit. Raises OSError.

    Among several the kernel shares connections out (SO_REUSEPORT, socket(7)). The first is bound without, so that a
    port that anybody else holds is an error. `transparent` ones may be handed what was sent to other addresses.
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
            if transparent:
                sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, len(sockets) > 1)
            sock.bind((address, port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, number > 1)
        for sock in sockets:
            sock.listen(BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return tuple(sockets)
