"""Interfaces: through which ports of this host's bridges a namespace sends, and what the bridges are."""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from struct import error as StructError  # noqa: N812 — it is a class
from typing import TYPE_CHECKING, NamedTuple

import structlog
import trio

from appliance.drivers.netns import netlink
from appliance.errors import RetryError, cause
from appliance.model.facts import HostBridge

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

log = structlog.get_logger()

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/net_namespace.h
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER = 1, 3, 5, 10
_IFLA_LINKINFO, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 18, 29, 37
_IFLA_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NETNSA_NSID, _NETNSA_FD = 1, 3
_SKIP_STATS = 8
_RTNLGRP_LINK = 1
_ifinfomsg = Struct("=BxHiII")
"""Family, hardware type, index, flags, mask of changes."""
_ifaddrmsg = Struct("=BBBBI")
"""Family, prefix length, flags, scope, interface."""
_number = Struct("=i")
_UNKNOWN = -1

LOOK_AGAIN = 0.05
"""Seconds between looks at interfaces: no notice inside a namespace tells when the host's end joins its bridge."""


class Link(NamedTuple):
    """An interface as the kernel describes it. Numbers that it does not have are 0, but `peer_netns`: None."""

    number: int
    name: str
    kind: str
    mac: int
    peer: int
    """Of a veth: the index of its other end, in its namespace."""
    peer_netns: int | None
    """The number by which this namespace knows that of the other end; None where that is here."""
    master: int
    """The bridge (or the like) that it is a port of."""


async def wait_ports(
    path: str,
    number: int,
    *,
    timeout: float,  # noqa: ASYNC109 — part of the answer
) -> frozenset[str]:
    """Return the ports of this host's bridges that lead into a namespace, as soon as there are that many.

    Returns those that there are after `timeout` seconds. A look takes about 0.7 ms. Each port is what the host sees:
    what a program in the namespace says of its interfaces is checked against that. Raises RetryError.
    """
    found: frozenset[str] = frozenset()
    try:
        with (
            netlink.socket_in(path, netlink.NETLINK_ROUTE) as told,
            netlink.socket_in(path, netlink.NETLINK_ROUTE) as inside,
            trio.move_on_after(timeout),
        ):
            netlink.join(told, _RTNLGRP_LINK)
            while len(found := _ports(path, inside)) < number:
                with trio.move_on_after(LOOK_AGAIN):
                    await trio.lowlevel.wait_readable(told)
                    told.recv(1 << 16)
    except OSError as error:
        raise _unreadable(path, error) from error
    return found


def _unreadable(path: str, error: OSError) -> RetryError:
    return RetryError(f"cannot read the interfaces of network namespace {path}: {error.strerror}")


def _ports(path: str, inside: socket.socket) -> frozenset[str]:
    ends = []
    with netlink.own_socket(netlink.NETLINK_ROUTE) as here:
        for link in _links(inside, _dump()):
            if link.kind == "veth" and link.peer_netns is not None:
                with suppress(OSError):  # it has just gone, or its other end is elsewhere
                    ends += [(link, end) for end in _links(here, _one(link.peer))]
        known_as = _number_of(path, here)  # which describing an end of it has made sure of
    return frozenset(
        end.name
        for link, end in ends
        if end.kind == "veth" and end.master and (end.peer, end.peer_netns) == (link.number, known_as)
    )


def _number_of(path: str, here: socket.socket) -> int:
    """Return the number by which this namespace knows another one; `_UNKNOWN` where it has given it none yet."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        question = bytes(4) + netlink.attribute(_NETNSA_FD, _number.pack(descriptor))
        answers = netlink.ask(here, netlink.request(_RTM_GETNSID, 0, question))
    finally:
        os.close(descriptor)
    for message in answers:
        if message.type == _RTM_NEWNSID:
            value = dict(netlink.attributes(message.body[4:])).get(_NETNSA_NSID, b"")
            number = _number.unpack(value)[0] if len(value) == _number.size else -1
            return number if number >= 0 else _UNKNOWN
    return _UNKNOWN


def host_bridges() -> tuple[HostBridge, ...]:
    """Return the bridges of this host's own namespace, sorted by name. About 1 ms. Raises OSError."""
    with netlink.own_socket(netlink.NETLINK_ROUTE) as sock:
        links = [link for link in _links(sock, _dump("bridge")) if link.kind == "bridge"]
        held: dict[int, set[IPv4Address | IPv6Address]] = {}
        if links:
            for index, address in _addresses(sock):
                held.setdefault(index, set()).add(address)
    return tuple(
        HostBridge(name=link.name, mac=link.mac, addresses=frozenset(held.get(link.number, ())))
        for link in sorted(links, key=lambda link: link.name)
    )


def with_addresses(path: str) -> dict[IPv4Address, int]:
    """Return the IPv4 addresses inside a namespace, each with the index of its interface. 0.3 ms. Raises OSError."""
    with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
        return {address: index for index, address in _addresses(sock) if isinstance(address, IPv4Address)}


def _dump(kind: str = "") -> bytes:
    body = _ifinfomsg.pack(0, 0, 0, 0, 0) + netlink.attribute(_IFLA_EXT_MASK, _number.pack(_SKIP_STATS))
    if kind:
        body += netlink.attribute(_IFLA_LINKINFO, netlink.attribute(_IFLA_INFO_KIND, kind.encode()))
    return netlink.request(_RTM_GETLINK, netlink.DUMP, body)


def _one(index: int) -> bytes:
    body = _ifinfomsg.pack(0, 0, index, 0, 0) + netlink.attribute(_IFLA_EXT_MASK, _number.pack(_SKIP_STATS))
    return netlink.request(_RTM_GETLINK, 0, body)


def _links(sock: socket.socket, question: bytes) -> list[Link]:
    found = []
    for message in netlink.ask(sock, question):
        if message.type == _RTM_NEWLINK:
            try:
                found.append(_link(message.body))
            except (LookupError, ValueError, StructError) as error:
                log.warning("a message of the kernel about an interface cannot be read", cause=cause(error))
    return found


def _link(body: bytes) -> Link:
    _, _, index, _, _ = _ifinfomsg.unpack_from(body)
    values = dict(netlink.attributes(body[_ifinfomsg.size :]))
    about = dict(netlink.attributes(values.get(_IFLA_LINKINFO, b"")))
    mac = values.get(_IFLA_ADDRESS, b"")

    def number(kind: int) -> int | None:
        return int.from_bytes(values[kind], "little", signed=True) if kind in values else None

    return Link(
        number=index,
        name=values[_IFLA_IFNAME].rstrip(b"\0").decode(),
        kind=about.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
        mac=int.from_bytes(mac, "big") if len(mac) == 6 else 0,
        peer=number(_IFLA_LINK) or 0,
        peer_netns=number(_IFLA_LINK_NETNSID),
        master=number(_IFLA_MASTER) or 0,
    )


def _addresses(sock: socket.socket) -> Iterator[tuple[int, IPv4Address | IPv6Address]]:
    """Yield all addresses of a namespace with the indices of their interfaces."""
    question = netlink.request(_RTM_GETADDR, netlink.DUMP, _ifaddrmsg.pack(0, 0, 0, 0, 0))
    for message in netlink.ask(sock, question):
        if message.type != _RTM_NEWADDR:
            continue
        *_, index = _ifaddrmsg.unpack_from(message.body)
        values = dict(netlink.attributes(message.body[_ifaddrmsg.size :]))
        packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
        if len(packed) == 4:
            yield index, IPv4Address(packed)
        elif len(packed) == 16:
            yield index, IPv6Address(packed)
