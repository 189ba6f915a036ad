"""Socket options and helpers that several modules of the data plane share."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from contextlib import suppress
from socket import SocketType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address

NONBLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
"""The type of TCP sockets. Descriptors from accept(2) block nevertheless; see tcp/accept.py."""
NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors which say that the process or the host has no room for another socket at present."""
NO_PORT = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN})
"""Errors of bind(2) and connect(2) which say that this host has no port left, or not the address to dial from."""
ACCEPT_PAUSE = 0.2
"""Seconds without accepting after the process or the host ran out of file descriptors."""
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
)
"""A dead machine is noticed after two minutes, also on connections that carry nothing."""
BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn."""
IP_TRANSPARENT = 19
"""From linux/in.h: the socket also receives what was sent to other addresses (ip(7))."""
IP_BIND_ADDRESS_NO_PORT = 24
"""From linux/in.h; the port is chosen at connect, when the other end is known, so there are enough of them."""
SO_ORIGINAL_DST = 80
"""From linux/netfilter_ipv4.h: where a connection went that the kernel leads elsewhere."""
_sockaddr_in = struct.Struct("=H2s4s8x")
"""Family, port and address, as the kernel writes them (ip(7))."""
LINGER_RESET = struct.pack("ii", 1, 0)
SO_BUF_LOCK = 72
"""From asm-generic/socket.h, since Linux 5.14: whether the sizes of buffers are fixed (socket(7))."""
SIOCATMARK = 0x8905
"""From asm-generic/sockios.h: whether an urgent byte is next (sockatmark(3))."""
SIOCINQ = 0x541B
"""From linux/sockios.h: bytes that can be read, those before an urgent byte (tcp(7))."""
NARROW_BUFFER = 1 << 15
"""Bytes asked for a narrow receive buffer. The kernel doubles it, for what it needs itself (socket(7))."""


def bind_source(sock: SocketType, source: tuple[str, int]) -> None:
    """Bind a socket that is about to connect to the address it connects from; its port must be 0.

    Other machines let in only one of this host's addresses. Raises OSError (EADDRNOTAVAIL when this host has no such
    address).
    """
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(source)


def original_destination(sock: SocketType) -> bytes:
    """Return what was dialled by a connection that rules have led elsewhere, as `packed_destination` has it.

    Where none has led it, that is the address of the socket. Raises OSError where the kernel does not track the
    connection, or its other end has reset it.
    """
    return sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, _sockaddr_in.size)


def packed_destination(address: IPv4Address, port: int) -> bytes:
    """Return an address and port as the kernel tells them: comparing that costs less than reading it."""
    return _sockaddr_in.pack(socket.AF_INET, port.to_bytes(2, "big"), address.packed)


def reset_on_close(sock: SocketType) -> None:
    """Make closing send a reset instead of an orderly end."""
    with suppress(OSError):  # it is gone already, which is what was wanted
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)


def narrow(sock: SocketType) -> None:
    """Let a socket receive little ahead of its reader."""
    with suppress(OSError):  # it is gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW_BUFFER)


def receive_buffer(sock: SocketType) -> int:
    """Return the bytes of memory that what waits in a socket for its reader may take; at least 1."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    except OSError:
        return 1  # it is gone already


def at_mark(sock: SocketType) -> bool:
    """Return whether an urgent byte is next, or is where the last bytes ended. Raises OSError."""
    return fcntl.ioctl(sock.fileno(), SIOCATMARK, bytes(4)) != bytes(4)


def readable(sock: SocketType) -> bool:
    """Return whether there are bytes to read, none of them urgent. Raises OSError."""
    return fcntl.ioctl(sock.fileno(), SIOCINQ, bytes(4)) != bytes(4)


def widen(sock: SocketType) -> None:
    """Let the kernel size a socket's receive buffer again as it sees fit."""
    with suppress(OSError):  # it is gone already, or the kernel is older: the buffer stays small
        sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 0)


def listen(
    port: int, number: int = 1, address: str = "0.0.0.0", *, transparent: bool = False
) -> tuple[SocketType, ...]:
    """Open listening TCP sockets; accepted sockets inherit their options. Raises OSError.

    The kernel spreads connections over several of them (SO_REUSEPORT, socket(7)). The first is bound without that
    option, so a port that any other program holds is an error. `transparent` sockets also receive what was sent to
    other addresses.
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
