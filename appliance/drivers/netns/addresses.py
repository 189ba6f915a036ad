"""The IPv4 addresses inside a network namespace."""

from __future__ import annotations

from ipaddress import IPv4Address
from struct import Struct
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import netlink
from appliance.errors import RetryError

if TYPE_CHECKING:
    import socket

# linux/rtnetlink.h, linux/if_addr.h
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTNLGRP_IPV4_IFADDR = 5
_ifaddrmsg = Struct("=BBBBI")
"""Family, prefix length, flags, scope, interface."""
_AF_INET = 2


async def read(path: str) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses inside a namespace, without loopback ones. About 0.3 ms. Raises RetryError."""
    await trio.lowlevel.checkpoint()
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
            return _addresses(sock)
    except OSError as error:
        raise _unreadable(path, error) from error


async def wait(
    path: str,
    wanted: IPv4Address | None = None,
    *,
    timeout: float = 1.0,  # noqa: ASYNC109 — part of the answer
) -> tuple[IPv4Address, ...]:
    """Return the addresses as soon as there are any or, if it is given, as `wanted` is among them.

    Returns none after `timeout` seconds. Raises RetryError.
    """
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock, trio.move_on_after(timeout):
            netlink.join(sock, _RTNLGRP_IPV4_IFADDR)
            while not (found := _addresses(sock)) or wanted not in {None, *found}:
                await trio.lowlevel.wait_readable(sock)
            return found
    except OSError as error:
        raise _unreadable(path, error) from error
    return ()


def _unreadable(path: str, error: OSError) -> RetryError:
    return RetryError(f"cannot read the addresses in network namespace {path}: {error.strerror}")


def _addresses(sock: socket.socket) -> tuple[IPv4Address, ...]:
    found: dict[IPv4Address, None] = {}  # in the kernel's order, each once
    question = netlink.request(_RTM_GETADDR, netlink.DUMP, _ifaddrmsg.pack(_AF_INET, 0, 0, 0, 0))
    for message in netlink.ask(sock, question):
        if message.type != _RTM_NEWADDR:
            continue
        values = dict(netlink.attributes(message.body[_ifaddrmsg.size :]))
        address = IPv4Address(values.get(_IFA_LOCAL) or values[_IFA_ADDRESS])
        if not address.is_loopback:
            found[address] = None
    return tuple(found)
