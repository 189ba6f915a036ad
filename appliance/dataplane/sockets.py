"""Socket options and helpers that several modules of the data plane share."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from socket import SocketType

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
LINGER_RESET = struct.pack("ii", 1, 0)
SO_BUF_LOCK = 72
"""From asm-generic/socket.h, since Linux 5.14: whether the sizes of buffers are fixed (socket(7))."""
NARROW_BUFFER = 1 << 15
"""Bytes asked for a narrow receive buffer. The kernel doubles it, for what it needs itself (socket(7))."""


def bind_source(sock: SocketType, source: tuple[str, int]) -> None:
    """Bind a socket that is about to connect to the address it connects from; its port must be 0.

    Other machines let in only one of this host's addresses. Raises OSError (EADDRNOTAVAIL when this host has no such
    address).
    """
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(source)


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
