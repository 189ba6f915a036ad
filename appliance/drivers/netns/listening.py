"""Which TCP ports of a network namespace have a program that listens, asked of the kernel (sock_diag(7)).

For one port at one address the kernel does the look-up that it does for a packet that asks to connect there. So a
socket at 0.0.0.0 counts, one at [::] that also takes IPv4, and one at that very address; one on loopback only does not.
Nothing is dialled, and what a container holds in other sockets costs nothing here.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from struct import Struct
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import identity, netlink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.model.network import NetnsId

BATCH = 64
"""Ports asked in one datagram, about 0.4 ms; traffic has its turn after each."""

# linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_TCP_LISTEN = 10
_request = Struct("=BBBxI HH 16s16sIII")
"""inet_diag_req_v2: family, protocol, extensions, states; ports, addresses, interface and cookie of the socket."""
_answer = Struct("=BBBB H")
"""The beginning of inet_diag_msg: family, state, timer, retransmissions; the socket's own port."""
_NO_COOKIE = 0xFFFFFFFF
_ANY = bytes(16)
_LOOPBACK = IPv4Address("127.0.0.1")


def open_in(path: str, netns: NetnsId) -> socket.socket | None:
    """Return a socket for `listening` in the namespace that the file leads to; None if that is another one, or gone.

    It keeps the namespace alive: close it when the container ends. About 0.2 ms.
    """
    try:
        sock = netlink.socket_in(path, _NETLINK_SOCK_DIAG)
    except OSError:
        return None
    if identity.identify(path) == netns:
        return sock
    sock.close()
    return None


async def listening(sock: socket.socket, address: IPv4Address, ports: Sequence[int]) -> frozenset[int]:
    """Return those of the ports at which a program takes connections to `address`. Raises OSError."""
    found: set[int] = set()
    for begin in range(0, len(ports), BATCH):
        found |= _look_up(sock, address, ports[begin : begin + BATCH])
        await trio.lowlevel.checkpoint()
    return frozenset(found)


def works() -> bool:
    """Whether this kernel answers such questions (CONFIG_INET_TCP_DIAG), tried on a socket of our own."""
    try:
        with socket.socket() as own, netlink.own_socket(_NETLINK_SOCK_DIAG) as sock:
            own.bind(("127.0.0.1", 0))
            own.listen(1)
            port = own.getsockname()[1]
            return _look_up(sock, _LOOPBACK, [port]) == {port}
    except OSError:
        return False


def _look_up(sock: socket.socket, address: IPv4Address, ports: Sequence[int]) -> set[int]:
    """Ask for some ports in one datagram. The kernel answers each by a datagram, within the call."""
    sock.send(b"".join(_question(address, port) for port in ports))
    found = set()
    for _ in ports:
        for message in netlink.messages(sock.recv(4096)):
            if message.type != _SOCK_DIAG_BY_FAMILY or len(message.body) < _answer.size:
                continue  # ENOENT: nothing listens there
            _, state, _, _, port = _answer.unpack_from(message.body)
            if state == _TCP_LISTEN:
                found.add(socket.ntohs(port))
    return found & set(ports)


def _question(address: IPv4Address, port: int) -> bytes:
    own = address.packed + bytes(12)
    body = _request.pack(
        socket.AF_INET,
        socket.IPPROTO_TCP,
        0,
        1 << _TCP_LISTEN,
        socket.htons(port),
        0,
        own,
        _ANY,
        0,
        _NO_COOKIE,
        _NO_COOKIE,
    )
    return netlink.request(_SOCK_DIAG_BY_FAMILY, 0, body)
