"""Sockets made inside of a workload's namespace, to talk with the workload there: over its own loopback interface.

A socket stays where it was made, so only making it means going there: the thread enters the namespace, makes a few, and
comes back (setns(2)).
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from socket import SocketType
from typing import TYPE_CHECKING, Final

import structlog

from appliance.dataplane.sources import leave_from
from appliance.dataplane.tcp.dial import NO_DESCRIPTORS, NONBLOCKING
from appliance.dataplane.udp.sockets import make_room

if TYPE_CHECKING:
    from io import FileIO

    from appliance.dataplane.udp.sockets import Client
    from appliance.model.network import Door

AGAIN: Final = 10.0
"""Seconds until it is tried again to dial from inside, after that was found to be impossible."""

log = structlog.get_logger()

FEW: Final = 4
"""Sockets made at a time."""
DATAGRAM: Final = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
CLONE_NEWNET: Final = 0x40000000
"""linux/sched.h; os.setns and os.CLONE_NEWNET come with Python 3.12."""
HOME = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""The namespace that this process belongs in."""

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceSockets:
    """One namespace."""

    def __init__(self, door: Door, netns: FileIO) -> None:
        """`netns` is its file, which this closes."""
        self._netns = netns
        self._source = (str(door.dialler), 0)
        self._made: list[SocketType] = []
        self._made_udp: list[SocketType] = []
        self._not_before = 0.0
        self._caller = str(door.caller)

    def socket(self) -> SocketType | None:
        """Return a socket that is ready to connect; None where there is no way to dial from inside any more.

        Raises OSError when there are no file descriptors left.
        """
        if not self._made and time.monotonic() >= self._not_before:
            self._make()
        return self._made.pop() if self._made else None

    def dial_udp(self, address: Client) -> SocketType | None:
        """Return a UDP socket that is connected to the workload; None where there is no way from inside.

        There is none to another address than the door's: from there an answer would come from that one. Raises OSError
        when there are no file descriptors left.
        """
        if address[0] != self._caller or time.monotonic() < self._not_before:
            return None
        sock = None
        try:
            sock = self._udp()
            leave_from(sock, self._source)
            sock.connect(address)
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno in NO_DESCRIPTORS:
                raise
            self._give_up(error)
            return None
        return sock

    def answer_udp(self, address: Client, client: Client) -> SocketType:
        """Return a UDP socket that has an address in there for what comes from this client. Raises OSError."""
        sock = self._udp()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.connect(client)
        except OSError:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Leave the namespace alone: it can go once nothing of it is open."""
        for sock in (*self._made, *self._made_udp):
            sock.close()
        self._made.clear()
        self._made_udp.clear()
        self._netns.close()

    def _udp(self) -> SocketType:
        if not self._made_udp:
            self._make_inside(self._made_udp, DATAGRAM)
        sock = self._made_udp.pop()
        make_room(sock)
        return sock

    def _make(self) -> None:
        made: list[SocketType] = []
        try:
            self._make_inside(made, NONBLOCKING)
            for sock in made:
                # No keepalive: both ends are this kernel's, which closes them with their programs.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                leave_from(sock, self._source)
        except OSError as error:
            for sock in made:
                sock.close()
            if error.errno in NO_DESCRIPTORS:
                raise
            self._give_up(error)
            return
        self._made += made

    def _give_up(self, error: OSError) -> None:
        # EADDRNOTAVAIL as a rule: somebody has removed the route that makes the source an address in there.
        self._not_before = time.monotonic() + AGAIN
        log.info("dialled from the host: inside of the container it cannot be", address=self._caller, cause=str(error))

    def _make_inside(self, made: list[SocketType], kind: int) -> None:
        _enter(self._netns.fileno())
        try:
            while len(made) < FEW:
                made.append(SocketType(socket.AF_INET, kind, 0))
        except OSError:
            if not made:
                raise  # one will do
        finally:
            _come_home()


def _enter(netns: int) -> None:
    if _libc.setns(netns, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


def _come_home() -> None:
    """Go back to where all else of this process is; without that nothing it does would be right."""
    for _ in range(100):
        if _libc.setns(HOME, CLONE_NEWNET) == 0:
            return
    os.abort()
