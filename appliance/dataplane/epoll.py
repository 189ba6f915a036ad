"""One epoll set for all sockets of the data plane, seen by uvloop as a single file descriptor.

uvloop's own `add_reader` and `add_writer` for each socket cost a third of the connection rate. Here a connected socket
is registered once in its life, edge-triggered for everything; events come in batches; a dict finds the handler.
What a handler may rely on: no file descriptor is closed, and so none is reused, before the batch it appeared in ends.
"""

from __future__ import annotations

import select
from select import EPOLLERR, EPOLLET, EPOLLEXCLUSIVE, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    import asyncio
    from socket import SocketType

log = structlog.get_logger()

IN = EPOLLIN
OUT = EPOLLOUT
ERR = EPOLLERR
HUP = EPOLLHUP
RDHUP = EPOLLRDHUP
PRI = EPOLLPRI
NOT_OUT = ~EPOLLOUT
EXCLUSIVE = EPOLLIN | EPOLLEXCLUSIVE
"""What a listening socket that several processes share is registered for; such an entry cannot be modified."""
CONNECTED = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET
"""What connected and connecting sockets are registered for."""

BATCH = 128
"""Most events fetched at a time."""
ROUNDS = 8
"""Most batches before uvloop gets its turn again (DNS, UDP, the control plane)."""
FEW = 4
"""After a batch of fewer the next one is probably empty: asking uvloop instead saves a system call."""


class Handler(Protocol):
    """What the set calls."""

    def ready(self, events: int) -> None:
        """Something happened on the file descriptor."""

    def fail(self) -> None:
        """`ready` raised what it should not have: give up this connection, and only this one."""


class EpollSet:
    """Sockets and their handlers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._closing: list[SocketType] = []
        self._running = False
        self.handlers: dict[int, Handler] = {}
        """By file descriptor. Replace a value to hand a registered socket to another handler."""
        loop.add_reader(self._epoll.fileno(), self._run)

    def add(self, fd: int, handler: Handler, events: int = CONNECTED) -> None:
        """Register a socket. Raises OSError (ENOSPC, ENOMEM)."""
        self._epoll.register(fd, events)
        self.handlers[fd] = handler

    def remove(self, fd: int) -> None:
        """Report nothing more of a socket that stays open."""
        if self.handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def rearm(self, fd: int, events: int = CONNECTED) -> None:
        """Report what is ready on `fd` once more; with `events` 0 only its errors."""
        self._epoll.modify(fd, events)

    def close(self, sock: SocketType) -> None:
        """Forget a socket and close it when the batch is through; closing takes it out of the kernel's set."""
        self.handlers.pop(sock.fileno(), None)
        self._closing.append(sock)
        if not self._running:
            self._close_all()

    def shut(self) -> None:
        """Close the set itself; sockets that are still in it are their owners'."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _run(self) -> None:
        poll = self._epoll.poll
        handlers = self.handlers
        self._running = True
        for _ in range(ROUNDS):
            batch = poll(0, BATCH)
            for fd, events in batch:
                try:
                    handler = handlers[fd]
                except KeyError:
                    continue  # closed earlier in this batch
                try:
                    handler.ready(events)
                except Exception:  # whatever it is, it must not end the loop
                    log.exception("connection handler failed")
                    handler.fail()
            if self._closing:
                self._close_all()
            if len(batch) < FEW:
                break
        self._running = False

    def _close_all(self) -> None:
        for sock in self._closing:
            try:
                sock.close()
            except OSError as error:
                # Linux has released the descriptor all the same; a reset that came first may be reported here.
                log.debug("close reported an error", error=str(error))
        self._closing.clear()
