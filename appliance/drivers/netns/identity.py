"""Network namespaces: which one a file leads to, who lives in it, what it has.

A namespace is known by the device and inode of its file (NetnsId), never by its path: Docker uses paths again.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import netlink
from appliance.drivers.netns.directory import FileChange, watch_directory
from appliance.drivers.netns.netlink import entered
from appliance.drivers.process import run
from appliance.errors import RetryError
from appliance.model.network import NetnsId

if TYPE_CHECKING:
    import socket

__all__ = [
    "HOST",
    "FileChange",
    "add_local_route",
    "addresses",
    "drop_local_route",
    "drop_route",
    "ensure_route",
    "entered",
    "find_container",
    "host",
    "identify",
    "wait_addresses",
    "wait_namespace",
    "wait_neighbour",
    "watch_directory",
]

HOST = "/proc/self/ns/net"
"""The file of the namespace that the appliance itself runs in: the host's."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")

_IP_TIMEOUT = 5.0
"""Seconds that ip(8) may take."""

_POLL = 0.002
"""Seconds between looks at a file that is to become a namespace: no event tells of a mount."""

# linux/rtnetlink.h, linux/if_addr.h
_RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 20, 22, 24, 25, 26
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_RT_TABLE_LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 4, 254, 2
_LOOPBACK = 1
"""The index of a namespace's `lo`."""
_RTNLGRP_IPV4_IFADDR = 5
_RTNLGRP_IPV4_ROUTE = 7
_ifaddrmsg = Struct("=BBBBI")
"""Family, prefix length, flags, scope, interface."""
_rtmsg = Struct("=BBBBBBBBI")
"""Family, destination and source length, TOS, table, protocol, scope, type, flags."""
_AF_INET = 2

_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@cache
def _namespace_device() -> int:
    """Return the device on which the kernel keeps all namespace files."""
    return Path(HOST).stat().st_dev


def identify(path: str) -> NetnsId | None:
    """Return which namespace the file leads to; None when it is gone, or an ordinary file (so far)."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    if found.st_dev != _namespace_device():
        return None
    return NetnsId(device=found.st_dev, inode=found.st_ino)


def host() -> str:
    """Return what tells this host from all others. It stays the same until the host boots."""
    return f"{_BOOT.read_text().strip()}/{Path(HOST).stat().st_ino}"


async def wait_namespace(path: str, *, timeout: float = 2.0) -> NetnsId | None:  # noqa: ASYNC109 — part of the answer
    """Wait until the file leads to a namespace. Docker makes the file first and mounts the namespace on it next.

    Returns None when it has vanished or is still an ordinary file after `timeout` seconds.
    """
    with trio.move_on_after(timeout):
        while (found := identify(path)) is None:
            if not os.path.lexists(path):  # noqa: ASYNC240 — a stat of a local file
                return None
            await trio.sleep(_POLL)
        return found
    return None


async def addresses(path: str) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses inside a namespace, without loopback ones. About 0.3 ms. Raises RetryError."""
    await trio.lowlevel.checkpoint()
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
            return _addresses(sock)
    except OSError as error:
        raise _unreadable(path, error) from error


async def wait_addresses(
    path: str,
    wanted: IPv4Address | None = None,
    *,
    timeout: float = 1.0,  # noqa: ASYNC109 — as above
) -> tuple[IPv4Address, ...]:
    """Return the addresses as soon as there are any, or as `wanted` is among them; none after `timeout` seconds.

    Raises RetryError.
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
    found: dict[IPv4Address, None] = {}
    question = netlink.request(_RTM_GETADDR, netlink.DUMP, _ifaddrmsg.pack(_AF_INET, 0, 0, 0, 0))
    for message in netlink.ask(sock, question):
        if message.type != _RTM_NEWADDR:
            continue
        values = dict(netlink.attributes(message.body[_ifaddrmsg.size :]))
        address = IPv4Address(values.get(_IFA_LOCAL) or values[_IFA_ADDRESS])
        if not address.is_loopback:
            found[address] = None
    return tuple(found)


async def wait_neighbour(path: str, neighbour: IPv4Address, *, timeout: float = 1.0) -> bool:  # noqa: ASYNC109 — as above
    """Return True as soon as an interface leads to an address of its own subnet, False after `timeout` seconds.

    It has the address before it is set up, and only then does that bring a route. Raises RetryError.
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


async def ensure_route(path: str, vip_range: IPv4Network, gateway: IPv4Address) -> bool:
    """Make sure that packets to virtual IPs leave the namespace, so that its rules can redirect them.

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
    """Undo `ensure_route`, if that was done. Raises RetryError."""
    command = ["nsenter", f"--net={path}", "ip", "route", "del", str(vip_range), "via", str(gateway)]
    done = await run(command, timeout=_IP_TIMEOUT)
    if done.code != 0 and "No such process" not in done.error:
        raise RetryError(
            f"cannot remove the route to {vip_range} in network namespace {path}: {done.error or done.code}"
        )


async def add_local_route(path: str, vip_range: IPv4Network, source: IPv4Address) -> None:
    """Have virtual IPs led to the namespace's own loopback interface; what is sent to them comes from `source`.

    That must be an address in there, and the kernel takes the route away with it. About 0.2 ms. Raises RetryError.
    """
    await trio.lowlevel.checkpoint()
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
            netlink.ask(sock, _local_route(_RTM_NEWROUTE, netlink.REPLACE, vip_range, source))
    except OSError as error:
        raise RetryError(
            f"cannot lead {vip_range} from {source} to lo in network namespace {path}: {error.strerror}"
        ) from error


async def drop_local_route(path: str, vip_range: IPv4Network) -> None:
    """Undo `add_local_route`, if that was done. Raises RetryError."""
    await trio.lowlevel.checkpoint()
    try:
        with netlink.socket_in(path, netlink.NETLINK_ROUTE) as sock:
            netlink.ask(sock, _local_route(_RTM_DELROUTE, netlink.ACK, vip_range))
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise RetryError(
                f"cannot remove the route to {vip_range} in network namespace {path}: {error.strerror}"
            ) from error


def _local_route(kind: int, flags: int, vip_range: IPv4Network, source: IPv4Address | None = None) -> bytes:
    length = vip_range.prefixlen
    body = _rtmsg.pack(_AF_INET, length, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    body += netlink.attribute(_RTA_DST, vip_range.network_address.packed)
    body += netlink.attribute(_RTA_OIF, _LOOPBACK.to_bytes(4, sys.byteorder))
    if source is not None:
        body += netlink.attribute(_RTA_PREFSRC, source.packed)
    return netlink.request(kind, flags, body)


async def find_container(path: str) -> str | None:
    """Return the id (64 hex digits) of the container that lives in the namespace; None if nobody does yet.

    Works before Docker tells of the container. Needs the host's process ids (--pid=host). Of several containers that
    share a namespace any may be returned.
    """
    netns = identify(path)
    return None if netns is None else await trio.to_thread.run_sync(_owner, netns.inode)


def _owner(inode: int) -> str | None:
    link = f"net:[{inode}]"
    for pid in _newest_first():
        try:
            if os.readlink(f"/proc/{pid}/ns/net") != link:  # noqa: PTH115 — there may be thousands of processes
                continue
            ids = _CONTAINER_ID.findall(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace"))
        except OSError:
            continue  # it has ended, or is closed to us
        if ids:
            return str(ids[-1])
    return None


def _newest_first() -> list[int]:
    """Return all process ids, the latest first: who is asked about has just been started."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 — as above
    last = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[-1])  # the latest id given out
    # Ids count up and begin again at the bottom, so those above the last one are the oldest.
    return sorted(pids, key=lambda pid: (pid <= last, pid), reverse=True)
