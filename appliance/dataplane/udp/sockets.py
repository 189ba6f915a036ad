"""UDP sockets with room for bursts, and the address that a datagram asked (IP_PKTINFO, ip(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from appliance.dataplane.sockets import IP_TRANSPARENT, bind_source

if TYPE_CHECKING:
    from socket import SocketType

    Client = tuple[str, int]
    Control = list[tuple[int, int, bytes]]

RECEIVE_BUFFER = 4 << 20
"""Bytes of kernel memory a socket may queue; used only while datagrams wait."""
PASSING = frozenset((errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE))
"""Errors of a send that say nothing about the other side."""

IP_PKTINFO = 8
"""From linux/in.h; Python's socket module does not have it."""
PKTINFO = struct.Struct("=i4s4s")
"""struct in_pktinfo: interface index, our address, address in the header."""
PKTINFO_SPACE = socket.CMSG_SPACE(PKTINFO.size)
SO_RCVBUFFORCE = 33
"""From asm-generic/socket.h: beyond net.core.rmem_max, with CAP_NET_ADMIN."""

MOST_UID = 2**32 - 3
"""The greatest user id but one; the greatest stands for none (chown(2))."""


BUFFER = memoryview(bytearray(1 << 16))
"""One for all, larger than any UDP datagram: what is read is sent before anything else is read."""
BUFFERS = [BUFFER]


def listen(port: int) -> SocketType:
    """Return a socket on all addresses that tells which one was asked. Raises OSError (EADDRINUSE)."""
    sock = _socket()
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind(("0.0.0.0", port))
    except OSError:
        sock.close()
        raise
    return sock


def listen_at_door(port: int) -> SocketType:
    """Return such a socket for a door, in the namespace that this thread has entered. Raises OSError (EADDRINUSE).

    The rules there (nft/door.nft) lead datagrams to sockets with IP_TRANSPARENT only. Programs without a capability can
    have none: so they are given nothing, also while the appliance is away and the port is free.
    """
    sock = listen(port)
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def connect(address: tuple[str, int], source: tuple[str, int] | None = None) -> SocketType:
    """Return a socket for one backend. Raises OSError (EMFILE; ENETUNREACH, EADDRNOTAVAIL and the like)."""
    sock = _socket()
    try:
        if source is not None:
            bind_source(sock, source)
        sock.connect(address)
    except Exception:
        sock.close()
        raise
    return sock


def bind_address(sock: SocketType, address: tuple[str, int]) -> SocketType:
    """Return a socket that takes over from a listening one what is sent to this one address. Raises OSError."""
    one = _socket()
    try:
        bind_beside(sock, one, address)
    except OSError:
        one.close()
        raise
    return one


def bind_beside(sock: SocketType, one: SocketType, address: tuple[str, int]) -> None:
    """Bind a new socket at one address of the port that `sock` has at all addresses. Raises OSError.

    They may share the port during the bind alone (SO_REUSEPORT, socket(7)); every other program is refused it always.
    The kernel lets sockets of one owner share only. So both have an owner meanwhile that nobody can guess: otherwise a
    program of the same user would get in between when it tries without pause.
    """
    both = (sock, one)
    former = os.fstat(sock.fileno()).st_uid
    nobody = int.from_bytes(os.urandom(4), "big") % MOST_UID + 1
    try:
        for each in both:
            _give(each, nobody)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
    finally:
        for each in both:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
            _give(each, former)


def _give(sock: SocketType, uid: int) -> None:
    """Change a socket's owner, where this process may (CAP_CHOWN). Rules for users see it, so it is for a moment."""
    with suppress(PermissionError):
        os.fchown(sock.fileno(), uid, -1)


def raw(most: int) -> SocketType:
    """Return a socket that sends whole IPv4 packets, in the namespace that this thread has entered (raw(7)).

    It keeps next to nothing of what others send by that protocol. Raises OSError: EPERM without CAP_NET_RAW; EMFILE
    where only descriptors from `most` on are left.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    if sock.fileno() >= most:
        sock.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    return sock


def asked_address(asked: Control) -> str | None:
    """Return which address of this host a datagram asked, by its control data."""
    packed = packed_address(asked)
    return None if packed is None else socket.inet_ntoa(packed)


def packed_address(asked: Control) -> bytes | None:
    """Return the same in its four bytes."""
    for level, kind, data in asked:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) >= PKTINFO.size:
            return bytes(PKTINFO.unpack_from(data)[1])
    return None


def reply_control(asked: Control) -> Control:
    """Return the control data that makes an answer leave from the address that `asked` came with."""
    address = asked_address(asked)
    if address is None:
        return []
    return [(socket.IPPROTO_IP, IP_PKTINFO, PKTINFO.pack(0, socket.inet_aton(address), bytes(4)))]


def _socket() -> SocketType:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    make_room(sock)
    return sock


def make_room(sock: SocketType) -> None:
    """Let it queue bursts."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
