"""Which server a workload meant to ask, when its rules have led the question to the door (nft/dns.nft).

For TCP the socket knows it. For UDP the kernel's connection tracking does: it is asked by ctnetlink
(linux/netfilter/nfnetlink_conntrack.h), within one call, for the flow whose answers go from the door to the asker.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Address = tuple[Any, ...]
"""A socket address of either family, as Python has it."""

NETLINK_NETFILTER = 12
_GET = 1 << 8 | 1
"""NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_GET."""
_NEW = 1 << 8
"""The answer: IPCTNL_MSG_CT_NEW."""
_REQUEST = 1
_NESTED = 0x8000
_ORIGINAL, _REPLY = 1, 2
"""CTA_TUPLE_ORIG, CTA_TUPLE_REPLY: a flow's two directions. The other numbers are those of their parts."""
_IP, _PROTO = 1, 2
_SOURCE: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}
_DESTINATION: dict[int, int] = {socket.AF_INET: 2, socket.AF_INET6: 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3

_LOOPBACK = bytes((127, 0, 0, 1))

_header = struct.Struct("=IHHII")
_family = struct.Struct("=BBH")
_attribute = struct.Struct("=HH")
_port = struct.Struct("!H")

SO_ORIGINAL_DST = 80
"""From linux/netfilter_ipv4.h; the same number in linux/netfilter_ipv6/ip6_tables.h."""


MAPPED = "::ffff:"
"""How IPv4 addresses begin at a socket for both families (RFC 4291 §2.5.5.2)."""


def asked_by_udp(netlink: socket.socket, client: Address, port: int) -> Address | None:
    """Return the server that a datagram from `client` was sent to before it was led to the door's port.

    None if that is unknown. `netlink` is a NETLINK_NETFILTER socket of the namespace that does not block.
    """
    host = client[0].removeprefix(MAPPED).partition("%")[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    source = socket.inet_pton(family, host)
    here = _LOOPBACK if host.startswith("127.") else source  # as the rules say
    addresses = _pack(_SOURCE[family], here) + _pack(_DESTINATION[family], source)
    ports = _pack(_SOURCE_PORT, _port.pack(port)) + _pack(_DESTINATION_PORT, _port.pack(client[1]))
    protocol = _pack(_NUMBER, bytes((socket.IPPROTO_UDP,)))
    flow = _pack(_IP | _NESTED, addresses) + _pack(_PROTO | _NESTED, protocol + ports)
    body = _family.pack(family, 0, 0) + _pack(_REPLY | _NESTED, flow)
    try:
        netlink.send(_header.pack(_header.size + len(body), _GET, _REQUEST, 1, 0) + body)
        answer = netlink.recv(4096)
    except OSError:  # a kernel without ctnetlink
        return None
    return _read(answer, family, client)


def _read(answer: bytes, family: int, client: Address) -> Address | None:
    if len(answer) < _header.size or _header.unpack_from(answer)[1] != _NEW:
        return None  # an error: the flow is forgotten already
    of_flow = dict(_attributes(answer[_header.size + _family.size :]))
    original = dict(_attributes(of_flow.get(_ORIGINAL, b"")))
    address = dict(_attributes(original.get(_IP, b""))).get(_DESTINATION[family])
    port = dict(_attributes(original.get(_PROTO, b""))).get(_DESTINATION_PORT)
    if address is None or port is None:
        return None
    with suppress(ValueError, struct.error):
        host = socket.inet_ntop(family, address)
        number = _port.unpack(port)[0]
        # A link-local server is on the link of the asker's own such address.
        return (host, number) if family == socket.AF_INET else (host, number, 0, client[3])
    return None


def asked_by_tcp(sock: socket.socket) -> Address | None:
    """Return the server that an accepted connection was made to before it was led here; None if unknown."""
    try:
        peer = sock.getpeername()
        if sock.family == socket.AF_INET6 and not peer[0].startswith(MAPPED):
            found = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            return socket.inet_ntop(socket.AF_INET6, found[8:24]), _port.unpack_from(found, 2)[0], 0, peer[3]
        found = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
        return socket.inet_ntop(socket.AF_INET, found[4:8]), _port.unpack_from(found, 2)[0]
    except OSError:  # it was made to the door itself, or has ended
        return None


def _pack(kind: int, value: bytes) -> bytes:
    return _attribute.pack(_attribute.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _attribute.size <= len(data):
        length, kind = _attribute.unpack_from(data, at)
        if length < _attribute.size or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + _attribute.size : at + length]
        at += (length + 3) & ~3
