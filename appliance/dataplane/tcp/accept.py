"""Accepting from listening TCP sockets: those of a listener's port, or of a door in a workload's namespace."""

from __future__ import annotations

import errno
import socket
from socket import SocketType
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.loop.epoll import IN
from appliance.dataplane.sockets import ACCEPT_PAUSE, BACKLOG, NO_DESCRIPTORS, NONBLOCKING, reset_on_close

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from appliance.dataplane.context import Context
    from appliance.dataplane.standstill import Standstill

log = structlog.get_logger()

ACCEPTS = 16
"""Most connections accepted at a time, so that one acceptor does not hold up the others."""
OWN = -1
"""The key of an acceptor's own socket among those from which it accepts; others have the slots of their workers."""


class ListenSocket:
    """A socket at which clients wait."""

    def __init__(self, acceptor: Acceptor, sock: SocketType) -> None:
        self.sock = sock
        self._acceptor = acceptor
        self._shares = acceptor.shares
        self._accept = sock._accept  # type: ignore[attr-defined]  # noqa: SLF001 — socket.accept() costs 4 µs more

    def ready(self, _events: int) -> None:
        """Accept some of the waiting clients; the socket is level-triggered, so the rest are reported again."""
        if self._acceptor.must_wait():
            self._acceptor.pause()
        else:
            self.accept(ACCEPTS)

    def fail(self) -> None:
        """Nothing to give up: the client whose handling failed was reset by its own handler."""

    def accept(self, most: int) -> None:
        """Accept at most so many of the waiting clients."""
        for _ in range(most):
            try:
                fd, (host, _port) = self._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._acceptor.on_no_descriptors(error)
                    return
                continue  # that client is gone already, or an error of its network (accept(2)): the next one
            # The descriptor itself blocks; MSG_DONTWAIT on each call saves two system calls to change that.
            client = SocketType(socket.AF_INET, NONBLOCKING, 0, fd)
            crowded = self._shares.is_crowded(fd)
            if crowded and not self._shares.make_room(fd):
                reset_on_close(client)
                client.close()
                self._acceptor.on_no_descriptors(OSError(errno.EMFILE, "those that are left are for the control plane"))
                return
            if not self._acceptor.take(client, host):
                return
            if crowded and most <= ACCEPTS:
                if self._shares.gives_way(self._acceptor.only):
                    self._acceptor.pause()  # the others of this caller's may wait, instead of being reset one by one
                return  # they are reported again, after what was given up is closed


class Acceptor:
    """Accepts from one socket, and from those of other workers while it accepts for them."""

    def __init__(
        self,
        context: Context,
        label: str,
        sock: SocketType,
        take: Callable[[SocketType, str], bool],
        *,
        standstill: Standstill | None = None,
        only: str = "",
    ) -> None:
        """`label` says in logs what clients are accepted for; `only` is the one caller that calls here, if it is one.

        `take` is called with each accepted client and its address; it returns whether to accept another. With
        `standstill`, clients wait while that holds.
        """
        self.take = take
        self.only = only
        self.shares = context.shares
        self._epoll = context.epoll
        self._loop = context.loop
        self._label = label
        self._standstill = standstill
        self.starved = 0
        """How often accepting paused for want of file descriptors."""
        self.stopped = False
        self.starving = False
        """Whether the last attempt to get a file descriptor failed; it is logged once."""
        self._pause: asyncio.TimerHandle | None = None
        self._sockets = {OWN: ListenSocket(self, sock)}
        self._watch()

    def accept_for(self, slot: int, sock: SocketType) -> None:
        """Also accept from the socket of the worker in that slot, until `stop_accepting_for`."""
        self.stop_accepting_for(slot)
        self._sockets[slot] = ListenSocket(self, sock)
        if self._pause is None:
            self._watch()

    def stop_accepting_for(self, slot: int) -> None:
        """Leave the socket of the worker in that slot to it."""
        listening = self._sockets.pop(slot, None)
        if listening is not None:
            self._close(listening)

    def stop(self) -> None:
        """Accept the clients that wait already, then no more."""
        if self.stopped:
            return
        self._cancel_pause()
        for listening in self._sockets.values():
            listening.accept(BACKLOG)
        self.stopped = True
        self._cancel_pause()
        for listening in self._sockets.values():
            self._close(listening)
        self._sockets.clear()

    def must_wait(self) -> bool:
        """Whether it is not known at present whose addresses are whose."""
        return self._standstill is not None and self._standstill.holds

    @property
    def pausing(self) -> bool:
        """Whether it accepts nothing at present."""
        return self._pause is not None

    def on_no_descriptors(self, error: OSError) -> None:
        """Pause, because there are no file descriptors left."""
        self.starved += 1
        if not self.starving:
            self.starving = True
            log.warning("out of file descriptors; accepting pauses", destination=self._label, error=str(error))
        self.pause()

    def pause(self) -> None:
        """Accept no more for ACCEPT_PAUSE seconds."""
        if self._pause is None and not self.stopped:
            for listening in self._sockets.values():
                self._epoll.remove(listening.sock.fileno())
            self._pause = self._loop.call_later(ACCEPT_PAUSE, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._watch()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _watch(self) -> None:
        for listening in self._sockets.values():
            if listening.sock.fileno() not in self._epoll.handlers:
                self._epoll.add(listening.sock.fileno(), listening, IN)

    def _close(self, listening: ListenSocket) -> None:
        self._epoll.remove(listening.sock.fileno())  # closing does not, where another process has the same socket
        self._epoll.close(listening.sock)
