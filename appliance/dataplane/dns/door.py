"""The DNS server's sockets inside of one workload's namespace, and what its rules lead there (nft/dns.nft).

Whoever asks there is that workload, whatever address it asks from. What is not the mesh's goes to the server that was
meant, from inside the namespace (relay.py): what Docker's own resolver, a VPN or another network answers is found, and
what such a server says stays what it said.
"""

from __future__ import annotations

import errno
import socket

from appliance.dataplane.sockets import IP_TRANSPARENT
from appliance.dataplane.udp.sockets import make_room

IPV6_TRANSPARENT = 75
"""From linux/in6.h, as IP_TRANSPARENT (ip(7))."""


class DnsDoor:
    """One namespace's door for DNS."""

    __slots__ = ("asker", "netns", "udp")

    def __init__(self, netns: str, asker: str) -> None:
        self.netns = netns
        self.asker = asker
        """The workload's address: its view in the zone is found by it."""
        self.udp: list[socket.socket] = []


def listen(port: int) -> tuple[socket.socket, socket.socket]:
    """Return the sockets of a door, for TCP and UDP, in the namespace that this thread has entered.

    No other program can have the port beside them. The rules give only to sockets with IP_TRANSPARENT, which takes a
    capability: so nobody has it while the appliance is away. Raises OSError (EADDRINUSE).
    """
    tcp = _socket(socket.SOCK_STREAM)
    udp = _socket(socket.SOCK_DGRAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        make_room(udp)
        for sock in (tcp, udp):
            make_transparent(sock)
            sock.bind(("", port) if sock.family == socket.AF_INET else ("::", port))
        tcp.listen(128)
    except OSError:
        tcp.close()
        udp.close()
        raise
    return tcp, udp


def _socket(kind: int) -> socket.socket:
    """Return a socket for IPv6 and IPv4, or for the latter alone where the kernel knows no other. Raises OSError."""
    try:
        sock = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def make_transparent(sock: socket.socket) -> None:
    """Have rules tell it from the workload's own sockets. Raises OSError (EPERM)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
