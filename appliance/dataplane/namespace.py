"""Sockets made in a workload's namespace, to talk with the workload over its own loopback interface.

A socket stays in the namespace where it was made. So only making it means entering the namespace: the thread enters it,
makes a few sockets, and returns (setns(2)).
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from socket import SocketType
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from appliance.dataplane.sockets import IP_TRANSPARENT, NO_DESCRIPTORS, NONBLOCKING, bind_source
from appliance.dataplane.udp.sockets import bind_beside, make_room

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from appliance.dataplane.udp.sockets import Client
    from appliance.model.network import Door

T = TypeVar("T")

AGAIN: Final = 10.0
"""Seconds for which a workload is dialled from the host after it could not be dialled from its namespace."""

log = structlog.get_logger()

FEW: Final = 4
"""Sockets made at a time."""
DATAGRAM: Final = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
CLONE_NEWNET: Final = 0x40000000
"""linux/sched.h; os.setns and os.CLONE_NEWNET come with Python 3.12."""
OWN_NETNS = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""The namespace that this process belongs in."""

_libc = ctypes.CDLL(None, use_errno=True)
"""drivers/netns/netlink.py also has setns: data plane and drivers never import each other. It enters a namespace in a
thread of its own, which costs 0.2 ms: too much for a dial."""


class NamespaceSockets:
    """One namespace."""

    def __init__(self, door: Door, netns: FileIO) -> None:
        """`netns` is its file, which this closes."""
        self._netns = netns
        self._source = (str(door.dialler), 0)
        self._tcp: list[SocketType] = []
        self._udp: list[SocketType] = []
        """Sockets made in advance."""
        self._not_before = 0.0
        self._caller = str(door.caller)

    def socket(self) -> SocketType | None:
        """Return a TCP socket that is ready to connect; None if the workload cannot be dialled from its namespace.

        Raises OSError when there are no file descriptors left.
        """
        if not self._tcp and time.monotonic() >= self._not_before:
            self._make_tcp()
        return self._tcp.pop() if self._tcp else None

    def dial_udp(self, address: Client) -> SocketType | None:
        """Return a UDP socket that is connected to the workload; None if it cannot be dialled from its namespace.

        Only the door's own address can: an answer to a datagram for another one would come from the door's. Raises
        OSError when there are no file descriptors left.
        """
        if address[0] != self._caller or time.monotonic() < self._not_before:
            return None
        sock = None
        try:
            sock = self._udp_socket()
            bind_source(sock, self._source)
            sock.connect(address)
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno in NO_DESCRIPTORS:
                raise
            self._give_up(error)
            return None
        return sock

    def answer_udp(self, door: SocketType, address: Client, client: Client) -> SocketType:
        """Return a UDP socket for what this client sends to that address of the door's socket. Raises OSError.

        Clients of one address share it among themselves (SO_REUSEADDR, socket(7)), but the door's socket with none of
        them: so it keeps all other programs from the port.
        """
        sock = self._udp_socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # First: once it is bound, it gets what other clients send, and rules lead to none without (door.nft).
            transparent = door.getsockopt(socket.IPPROTO_IP, IP_TRANSPARENT)
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, transparent)
            bind_beside(door, sock, address)
            sock.connect(client)
        except OSError:
            sock.close()
            raise
        return sock

    def entered(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the namespace; it must not block. Raises OSError."""
        _enter(self._netns.fileno())
        try:
            return make()
        finally:
            _return()

    def close(self) -> None:
        """Let go of the namespace: it can end once nothing of it is open."""
        for sock in (*self._tcp, *self._udp):
            sock.close()
        self._tcp.clear()
        self._udp.clear()
        self._netns.close()

    def _udp_socket(self) -> SocketType:
        if not self._udp:
            self._make(self._udp, DATAGRAM)
        sock = self._udp.pop()
        make_room(sock)
        return sock

    def _make_tcp(self) -> None:
        made: list[SocketType] = []
        try:
            self._make(made, NONBLOCKING)
            for sock in made:
                # No keepalive: both ends are this kernel's, which closes them with their programs.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                bind_source(sock, self._source)
        except OSError as error:
            for sock in made:
                sock.close()
            if error.errno in NO_DESCRIPTORS:
                raise
            self._give_up(error)
            return
        self._tcp += made

    def _give_up(self, error: OSError) -> None:
        # EADDRNOTAVAIL as a rule: the route that makes the source an address of the namespace was removed.
        self._not_before = time.monotonic() + AGAIN
        log.info(
            "cannot dial a container from its namespace; dialled from the host instead",
            address=self._caller,
            cause=str(error),
        )

    def _make(self, made: list[SocketType], kind: int) -> None:
        """Make a few sockets in the namespace, at least one. Raises OSError."""
        _enter(self._netns.fileno())
        try:
            while len(made) < FEW:
                made.append(SocketType(socket.AF_INET, kind, 0))
        except OSError:
            if not made:
                raise  # one will do
        finally:
            _return()


def _enter(netns: int) -> None:
    if _libc.setns(netns, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


def _return() -> None:
    """Return to the namespace of this process. Abort if that fails: whatever it did elsewhere would be wrong."""
    for _ in range(100):
        if _libc.setns(OWN_NETNS, CLONE_NEWNET) == 0:
            return
    os.abort()
