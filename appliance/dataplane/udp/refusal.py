"""Telling clients that nobody takes what they send, as the server's kernel does without a proxy: by ICMP.

What a client has sent ends at the data plane, so no kernel has its headers, to send an error about them. A raw socket
in the client's own network namespace does (raw(7)); a client that came by the host gets the error from there, and
connection tracking translates it as it did the datagram. It says that the port is unreachable, which is the one error
that a connected UDP socket reports without being asked to (udp(7), icmp_err_convert in net/ipv4/icmp.c).
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

import structlog

from appliance.dataplane.udp.sockets import raw

if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import SocketType

    from appliance.dataplane.namespace import NamespaceSockets
    from appliance.dataplane.udp.sockets import Client

log = structlog.get_logger()

RATE: Final = 100.0
"""Errors a second for each caller. The kernel sends 1 a second to each address (icmp_ratelimit in ip-sysctl.rst), but
all clients in a container have one address."""
BURST: Final = 100.0
"""Errors at once; the kernel sends 6 (XRLIM_BURST_FACTOR in net/ipv4/route.c)."""
MOST_CALLERS: Final = 1024
"""Callers of which is known how much they may still have; the latest."""
AGAIN: Final = 10.0
"""Seconds until another attempt after no raw socket could be made."""

IP: Final = struct.Struct(">BBHHHBBH4s4s")
"""RFC 791: version and header length, type of service, length, id, fragment, time to live, protocol, checksum, from and
to.
"""
ICMP: Final = struct.Struct(">BBHI")
"""RFC 792: type, code, checksum, unused."""
UDP: Final = struct.Struct(">HHHH")
"""RFC 768: from, to, length, checksum."""
VERSION_AND_LENGTH: Final = 0x45
INTERNETWORK_CONTROL: Final = 0xC0
"""Type of service of ICMP errors (RFC 1812, 4.3.2.5)."""
TTL: Final = 64
UNREACHABLE: Final = 3
PORT: Final = 3
"""Type and code: destination unreachable, and it is the port."""


class Refusals:
    """What tells clients, and how many of them it may still tell."""

    def __init__(self, namespaces: Mapping[str, NamespaceSockets], most: int) -> None:
        """`namespaces` says, at any time, which ones clients may be told in; `most` is the lowest descriptor too high.

        There is one raw socket in each namespace of a client that was told, and one on the host.
        """
        self._namespaces = namespaces
        self._most = most
        self._host: SocketType | None = None
        self._left: dict[str, tuple[float, float]] = {}
        """By caller: how many errors it may have, and since when, in seconds of the monotonic clock."""
        self._not_before: dict[str, float] = {}
        """By namespace: when a raw socket may be had again."""

    def refuse(self, caller: str, netns: str, client: Client, asked: Client) -> None:
        """Tell a client that nobody took its last datagram to `asked`, as it called that.

        `netns` is the namespace through whose door it came, empty for none.
        """
        now = time.monotonic()
        if not self._may_tell(caller, now):
            return
        sock = self._socket(netns, now)
        if sock is None:
            return
        try:
            sock.sendto(port_unreachable(client, asked), (client[0], 0))
        except OSError as error:  # the client's side: its route, its firewall or a full queue
            log.debug("a UDP client was not told that nobody serves it", client=client[0], cause=str(error))

    def close(self) -> None:
        """Tell nobody any more. Sockets in namespaces are theirs."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def _may_tell(self, caller: str, now: float) -> bool:
        left, since = self._left.pop(caller, (BURST, now))
        left = min(BURST, left + (now - since) * RATE)
        self._left[caller] = (max(0.0, left - 1.0), now)
        if len(self._left) > MOST_CALLERS:
            del self._left[next(iter(self._left))]
        return left >= 1.0

    def _socket(self, netns: str, now: float) -> SocketType | None:
        if now < self._not_before.get(netns, 0.0):
            return None
        try:
            if netns:
                namespace = self._namespaces.get(netns)
                return None if namespace is None else namespace.raw(self._most)
            if self._host is None:
                self._host = raw(self._most)
        except OSError as error:
            if not self._not_before:
                remedy = "give the appliance CAP_NET_RAW" if error.errno == errno.EPERM else "it is tried again"
                words = f"UDP clients are not told that nobody serves them, and wait: no raw socket; {remedy}"
                log.warning(words, cause=str(error))
            self._not_before = {key: at for key, at in self._not_before.items() if at > now}
            self._not_before[netns] = now + AGAIN
            return None
        return self._host


def port_unreachable(client: Client, asked: Client) -> bytes:
    """Return the packet that says so, from the address that was asked, with the headers of what the client sent.

    Without the data: to a socket the headers say enough. The kernel fills in the length, id and checksum that are 0.
    """
    to, by = socket.inet_aton(client[0]), socket.inet_aton(asked[0])
    sent = IP.pack(VERSION_AND_LENGTH, 0, IP.size + UDP.size, 0, 0, TTL, socket.IPPROTO_UDP, 0, to, by)
    sent = sent[:10] + struct.pack(">H", checksum(sent)) + sent[12:] + UDP.pack(client[1], asked[1], UDP.size, 0)
    said = ICMP.pack(UNREACHABLE, PORT, checksum(ICMP.pack(UNREACHABLE, PORT, 0, 0) + sent), 0) + sent
    return IP.pack(VERSION_AND_LENGTH, INTERNETWORK_CONTROL, 0, 0, 0, TTL, socket.IPPROTO_ICMP, 0, by, to) + said


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
