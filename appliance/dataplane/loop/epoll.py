"""One epoll set for all sockets of the data plane, seen by uvloop as a single file descriptor.

uvloop's own `add_reader` and `add_writer` for each socket cost a third of the connection rate. Here a connected socket
is registered once in its life, edge-triggered for everything; events come in batches; a dict finds the handler.
A handler may rely on this: no file descriptor is closed, and so none is reused, before the batch it appeared in ends.

While traffic flows, this set waits for it and not uvloop. A wake-up through uvloop's epoll set and this one costs half
of what a small message does. For such a stay the two sets change places: uvloop's is watched in this one, and any event
there ends the stay. (Each in the other would be a loop, which epoll_ctl(2) refuses.) A timer ends the stay, too. It is
set once for all of it, because a timeout at each wait would cost a tenth of a small message.

When one set is added to another, the kernel checks every socket of the inner set under a system-wide mutex, which costs
0.1 µs for each socket at each stay. So a large set stays in uvloop's, muted, and a third set with both is waited for.
That costs one more system call for each batch, 2 µs.
"""

from __future__ import annotations

import os
import select
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from appliance.dataplane.loop.timerfd import Timerfd
from appliance.dataplane.loop.uvpoll import UvPoll

if TYPE_CHECKING:
    import asyncio
    from socket import SocketType

log = structlog.get_logger()

IN: Final = EPOLLIN
OUT: Final = EPOLLOUT
ERR: Final = EPOLLERR
HUP: Final = EPOLLHUP
RDHUP: Final = EPOLLRDHUP
PRI: Final = EPOLLPRI
NOT_OUT: Final = ~EPOLLOUT
CONNECTED: Final = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET
"""What connected and connecting sockets are registered for."""

BATCH: Final = 128
"""Most events fetched at a time."""
ROUNDS: Final = 8
"""Most batches in a row before uvloop gets its turn."""
FEW: Final = 4
"""After a batch of fewer events the next one is probably empty: waiting instead saves a system call."""
STAY = 0.002
"""Most seconds of waiting here before uvloop gets its turn again, if only for its timers."""
MANY = 256
"""With this many sockets the set stays in uvloop's."""


class Handler(Protocol):
    """What the set calls."""

    def ready(self, events: int) -> None:
        """Something happened on the file descriptor."""

    def fail(self) -> None:
        """`ready` raised an unforeseen error: give up this connection, and only this one."""


class EpollSet:
    """Sockets and their handlers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `loop` watch it. Raises OSError (EMFILE, ENFILE)."""
        self._loop = loop
        self._epoll = select.epoll()
        self._uv = UvPoll(loop)
        self._uv_epoll = select.epoll.fromfd(os.dup(self._uv.fd))
        """uvloop's own."""
        self._timer = Timerfd()
        self._both = select.epoll()
        """uvloop's, the timer, and this one once it has been large: in another set each of its events costs more."""
        self._both.register(self._uv_epoll, IN)
        self._both.register(self._timer.fd, IN)
        self._was_large = False
        self._closing: list[SocketType] = []
        self._running = False
        self._leaving = False
        self.handlers: dict[int, Handler] = {}
        """By file descriptor. Replace a value to hand a registered socket to another handler."""
        self._end = _End(self)
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
        """Forget a socket and close it when the batch ends; closing takes it out of the kernel's set."""
        self.handlers.pop(sock.fileno(), None)
        self._closing.append(sock)
        if not self._running:
            self._close_all()

    def shut(self) -> None:
        """Close the set itself; sockets that are still in it are their owners'."""
        self._loop.remove_reader(self._epoll.fileno())
        self._both.close()
        self._epoll.close()
        self._uv_epoll.close()
        self._timer.close()

    def leave(self) -> None:
        """Let uvloop have its turn after this batch."""
        self._leaving = True

    def _run(self) -> None:
        self._running = True
        wait = self._uv.timeout()
        try:
            self._rounds()
            if wait:
                self._stay(STAY if wait < 0 else min(STAY, wait / 1000))
        finally:
            self._running = False

    def _rounds(self) -> None:
        for _ in range(ROUNDS):
            batch = self._epoll.poll(0, BATCH)
            self._handle(batch)
            if len(batch) < FEW:
                break

    def _stay(self, seconds: float) -> None:
        """Wait for events here, and handle them, until uvloop has something to do."""
        self._timer.set(seconds)
        if len(self.handlers) < MANY:
            self._wait_with_few()
        else:
            self._wait_with_many()

    def _wait_with_few(self) -> None:
        self._leaving = False
        self._uv_epoll.unregister(self._epoll)
        self.add(self._uv_epoll.fileno(), self._end, IN)
        self.add(self._timer.fd, self._end, IN)
        try:
            while not self._leaving:
                self._handle(self._epoll.poll(None, BATCH))
        finally:
            self.remove(self._timer.fd)
            self.remove(self._uv_epoll.fileno())
            self._uv_epoll.register(self._epoll, IN)

    def _wait_with_many(self) -> None:
        if not self._was_large:
            self._both.register(self._epoll, IN)
            self._was_large = True
        only_traffic = [(self._epoll.fileno(), IN)]
        poll = self._both.poll
        self._uv_epoll.modify(self._epoll, 0)
        try:
            while poll(None, 3) == only_traffic:
                self._rounds()
        finally:
            self._uv_epoll.modify(self._epoll, IN)

    def _handle(self, batch: list[tuple[int, int]]) -> None:
        handlers = self.handlers
        for fd, events in batch:
            try:
                handler = handlers[fd]
            except KeyError:
                continue  # closed earlier in this batch
            try:
                handler.ready(events)
            except Exception:  # no error of one connection may end the loop
                log.exception("a handler of the data plane failed; what it served ends")
                handler.fail()
        if self._closing:
            self._close_all()

    def _close_all(self) -> None:
        for sock in self._closing:
            try:
                sock.close()
            except OSError as error:
                # Linux has released the descriptor nevertheless; a reset that came first may be reported here.
                log.debug("an error was reported when a socket was closed", error=str(error))
        self._closing.clear()


class _End:
    """Handles the end of a stay: its time is over, or uvloop has events."""

    def __init__(self, polls: EpollSet) -> None:
        self._polls = polls

    def ready(self, _events: int) -> None:
        """Go back to uvloop."""
        self._polls.leave()

    def fail(self) -> None:
        """Nothing to give up: it is no connection."""
