"""Sockets made in a workload's namespace, to talk with the workload over its own loopback interface.

A socket stays in the namespace where it was made. So only making it means entering the namespace: the thread enters it,
makes a few sockets, and returns (setns(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from socket import SocketType
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from appliance.dataplane.sockets import IP_TRANSPARENT, NO_DESCRIPTORS, NONBLOCKING
from appliance.dataplane.sources import FIRST_PORT, MOST_TRIES, PORTS, Source
from appliance.dataplane.udp.sockets import bind_beside, make_room, raw

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from appliance.dataplane.sources import Sources
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

    def __init__(self, door: Door, netns: FileIO, sources: Sources) -> None:
        """`netns` is its file, which this closes; `sources` says, at any time, from where to dial for whom."""
        self._netns = netns
        self._sources = sources
        self._shared = Source([str(door.dialler)])
        """For callers that have no address of their own."""
        self._tcp: list[SocketType] = []
        self._udp: list[SocketType] = []
        """Sockets made in advance."""
        self._raw: SocketType | None = None
        self._not_before = 0.0
        self._silent_until = 0.0
        self._address = str(door.caller)

    def dial(self, address: Client, caller: str) -> tuple[SocketType, int] | None:
        """Begin to connect to the workload for a caller; return the TCP socket and the errno of connect(2).

        None if the workload cannot be dialled from its namespace. Raises OSError when there are no file descriptors
        left.
        """
        if time.monotonic() < self._not_before:
            return None
        source = self._sources.of(caller, self._shared)
        sock: SocketType | None = None
        for _ in range(MOST_TRIES):
            if sock is None:
                sock = self._tcp_socket()
                if sock is None:
                    return None
            try:
                sock.bind(source.take())
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    source.clash()
                    continue
                sock.close()
                self._give_up(error)
                return None
            try:
                code = sock.connect_ex(address)
            except Exception:  # noqa: BLE001 — an address that no socket takes, such as port 99999
                return sock, errno.EINVAL
            if code != errno.EADDRNOTAVAIL:
                source.free()
                return sock, code
            source.clash()
            sock.close()  # it stays bound
            sock = None
        if sock is not None:
            sock.close()
        self._tell_of_ports(caller)
        return None

    def dial_udp(self, address: Client, caller: str) -> SocketType | None:
        """Return a UDP socket that is connected to the workload; None if it cannot be dialled from its namespace.

        Only the door's own address can: an answer to a datagram for another one would come from the door's. Raises
        OSError when there are no file descriptors left.
        """
        if address[0] != self._address or time.monotonic() < self._not_before:
            return None
        source = self._sources.of(caller, self._shared)
        sock: SocketType | None = None
        try:
            sock = self._udp_socket()
            for _ in range(MOST_TRIES):
                try:
                    sock.bind(source.take())
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    source.clash()
                    continue
                source.free()
                sock.connect(address)
                return sock
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno in NO_DESCRIPTORS:
                raise
            self._give_up(error)
            return None
        sock.close()
        self._tell_of_ports(caller)
        return None

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

    def raw(self, most: int) -> SocketType:
        """Return the socket that sends whole packets in there; it is made once. Raises OSError (sockets.raw)."""
        if self._raw is None:
            self._raw = self.entered(lambda: raw(most))
        return self._raw

    def move(self, door: Door) -> None:
        """Take another address of the workload as its own."""
        self._address = str(door.caller)

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
        if self._raw is not None:
            self._raw.close()
            self._raw = None
        self._tcp.clear()
        self._udp.clear()
        self._netns.close()

    def _udp_socket(self) -> SocketType:
        if not self._udp:
            self._make(self._udp, DATAGRAM)
        sock = self._udp.pop()
        make_room(sock)
        return sock

    def _tcp_socket(self) -> SocketType | None:
        if not self._tcp:
            self._make_tcp()
        return self._tcp.pop() if self._tcp else None

    def _make_tcp(self) -> None:
        made: list[SocketType] = []
        try:
            self._make(made, NONBLOCKING)
            for sock in made:
                # No keepalive: both ends are this kernel's, which closes them with their programs.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Ports are shared with each other's connections, those in TIME_WAIT too, and with no listening socket.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
            address=self._address,
            cause=str(error),
        )

    def _tell_of_ports(self, caller: str) -> None:
        """Log that a caller's ports are in use here: by its own connections, or by programs of the workload."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + AGAIN
            log.warning(
                "no port is free for a caller inside a container's namespace; dialled from the host instead",
                address=self._address,
                caller=caller,
                ports=f"{FIRST_PORT}-{FIRST_PORT + PORTS - 1}",
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
