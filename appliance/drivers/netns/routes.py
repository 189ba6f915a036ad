"""The IPv4 routes of a network namespace: to virtual IPs, and to its neighbours."""

from __future__ import annotations

import errno
import sys
from ipaddress import IPv4Address, IPv4Network
from struct import Struct
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import netlink
from appliance.drivers.process import run
from appliance.errors import RetryError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

_IP_TIMEOUT = 5.0
"""Seconds that ip(8) may take."""

# linux/rtnetlink.h
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_RTPROT_STATIC = 4
_RT_SCOPE_HOST, _RT_SCOPE_NOWHERE = 254, 255
_RTN_LOCAL = 2
_LOOPBACK = 1
"""The index of a namespace's `lo`."""
_RTNLGRP_IPV4_ROUTE = 7
_LAST = 0x6D657368
"""The metric of the routes that hold while the others are gone. Nobody else's has it: so they are known again."""
_LOCALHOST = IPv4Address("127.0.0.1")
_rtmsg = Struct("=BBBBBBBBI")
"""Family, destination and source length, TOS, table, protocol, scope, type, flags."""
_AF_INET = 2
_WHOLE_ADDRESS = 32
"""The length of the prefix of a route to one address."""


async def wait_neighbour(
    path: str,
    neighbour: IPv4Address,
    *,
    timeout: float = 1.0,  # noqa: ASYNC109 — part of the answer
) -> bool:
    """Return True as soon as an interface leads to an address of its own subnet, False after `timeout` seconds.

    Docker gives an interface its address before it sets it up, and only that brings the route. Raises RetryError.
    """
    try:
        with (
            netlink.socket_in(path, netlink.NETLINK_ROUTE) as told,
            netlink.socket_in(path, netlink.NETLINK_ROUTE) as asked,
            trio.move_on_after(timeout),
        ):
            netlink.join(told, _RTNLGRP_IPV4_ROUTE)
            while not _leads_to(asked, neighbour):
                await trio.lowlevel.wait_readable(told)
                told.recv(1 << 16)
            return True
    except OSError as error:
        raise _no_routes(path, error) from error
    return False


def _leads_to(sock: socket.socket, address: IPv4Address) -> bool:
    """Return whether some route of the namespace takes packets to the address."""
    target = netlink.attribute(_RTA_DST, address.packed)
    try:
        netlink.ask(sock, netlink.request(_RTM_GETROUTE, 0, _rtmsg.pack(_AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + target))
    except OSError as error:
        if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
            return False
        raise
    return True


def _no_routes(path: str, error: OSError) -> RetryError:
    return RetryError(f"cannot look up routes in network namespace {path}: {error.strerror}")


async def add_route(path: str, vip_range: IPv4Network, gateway: IPv4Address) -> bool:
    """Route virtual IPs out of the namespace, unless a route does so already: its rules can then redirect them.

    A namespace on `internal` networks only has no default route: connecting to a virtual IP would fail before any rule
    sees it. Returns whether a route through `gateway` had to be added. About 0.3 ms when not. Raises RetryError.
    """
    await trio.lowlevel.checkpoint()
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
            if _leads_to(sock, vip_range[1 if vip_range.num_addresses > 1 else 0]):
                return False
    except OSError as error:
        raise _no_routes(path, error) from error
    command = ["nsenter", f"--net={path}", "ip", "route", "replace", str(vip_range), "via", str(gateway)]
    done = await run(command, timeout=_IP_TIMEOUT)
    if done.code != 0:
        raise RetryError(f"cannot add a route to {vip_range} in network namespace {path}: {done.error or done.code}")
    return True


async def drop_route(path: str, vip_range: IPv4Network, gateway: IPv4Address) -> None:
    """Undo `add_route`: remove the route to `vip_range` through `gateway`.

    A route that is not there is no error, and one through another gateway stays. About 0.2 ms. Raises RetryError.
    """
    await trio.lowlevel.checkpoint()
    # Protocol and type are 0 and the scope is NOWHERE: the kernel compares none of them, as for `ip route del`.
    body = _rtmsg.pack(_AF_INET, vip_range.prefixlen, 0, 0, _RT_TABLE_MAIN, 0, _RT_SCOPE_NOWHERE, 0, 0)
    body += netlink.attribute(_RTA_DST, vip_range.network_address.packed)
    body += netlink.attribute(_RTA_GATEWAY, gateway.packed)
    _drop(path, vip_range, lambda sock: netlink.ask(sock, netlink.request(_RTM_DELROUTE, netlink.ACK, body)))


async def add_local_route(
    path: str, vip_range: IPv4Network, source: IPv4Address, former: IPv4Address | None = None
) -> None:
    """Route virtual IPs to the namespace's own loopback interface; packets to them leave from `source`.

    `source` must be an address of the namespace; the kernel removes the route with it. Then another one leads there,
    and packets leave from 127.0.0.1. Connections from and to `source` inside the namespace go on, as do those of
    `former`. About 0.3 ms. Raises RetryError.
    """
    await trio.lowlevel.checkpoint()
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
            for request in (
                _local_route(_RTM_NEWROUTE, netlink.REPLACE, vip_range, source),
                _local_route(_RTM_NEWROUTE, netlink.REPLACE, vip_range, _LOCALHOST, _LAST),
                _local_route(_RTM_NEWROUTE, netlink.REPLACE, IPv4Network(source), None, _LAST),
            ):
                netlink.ask(sock, request)
            _drop_held(sock, {source, former})
    except OSError as error:
        raise RetryError(
            f"cannot lead {vip_range} from {source} to lo in network namespace {path}: {error.strerror}"
        ) from error


async def drop_local_route(path: str, vip_range: IPv4Network) -> None:
    """Undo `add_local_route`; a route that is not there is no error. Raises RetryError."""
    await trio.lowlevel.checkpoint()
    _drop(path, vip_range, lambda sock: _drop_local(sock, vip_range, 0))
    _drop(path, vip_range, lambda sock: _drop_local(sock, vip_range, _LAST))
    _drop(path, vip_range, lambda sock: _drop_held(sock, set()))


def _drop_local(sock: socket.socket, target: IPv4Network, metric: int) -> None:
    netlink.ask(sock, _local_route(_RTM_DELROUTE, netlink.ACK, target, None, metric))


def _drop_held(sock: socket.socket, keep: AbstractSet[IPv4Address | None]) -> None:
    """Drop the routes that keep a namespace's former addresses its own, but for some. Raises OSError."""
    everything = netlink.request(_RTM_GETROUTE, netlink.DUMP, _rtmsg.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))
    for message in netlink.ask(sock, everything):
        values = dict(netlink.attributes(message.body[_rtmsg.size :]))
        if (
            message.type == _RTM_NEWROUTE
            and message.body[1] == _WHOLE_ADDRESS
            and values.get(_RTA_PRIORITY) == _LAST.to_bytes(4, sys.byteorder)
            and (held := IPv4Address(values[_RTA_DST])) not in keep
        ):
            _drop_local(sock, IPv4Network(held), _LAST)


def _drop(path: str, vip_range: IPv4Network, drop: Callable[[socket.socket], object]) -> None:
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
            drop(sock)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise RetryError(
                f"cannot remove the route to {vip_range} in network namespace {path}: {error.strerror}"
            ) from error


def _local_route(
    kind: int, flags: int, target: IPv4Network, source: IPv4Address | None = None, metric: int = 0
) -> bytes:
    length = target.prefixlen
    body = _rtmsg.pack(_AF_INET, length, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    body += netlink.attribute(_RTA_DST, target.network_address.packed)
    body += netlink.attribute(_RTA_OIF, _LOOPBACK.to_bytes(4, sys.byteorder))
    if source is not None:
        body += netlink.attribute(_RTA_PREFSRC, source.packed)
    if metric:
        body += netlink.attribute(_RTA_PRIORITY, metric.to_bytes(4, sys.byteorder))
    return netlink.request(kind, flags, body)
