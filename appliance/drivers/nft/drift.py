"""Reports when another program has changed our table in a network namespace.

The kernel reports every commit to the group NFNLGRP_NFTABLES, object by object: the table, and the netlink port of the
program that committed. Changes by others to their own tables (Docker at a container's start) are ignored; any change by
others to ours is drift. Nothing is listed, so a quiet namespace costs nothing.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.netns import identity, netlink
from appliance.drivers.nft.commits import OWN
from appliance.errors import RetryError, cause
from appliance.render.ruleset import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.model.network import Netns, NetnsId

log = structlog.get_logger()

BETWEEN = 1.0
"""Least seconds between two reports of one namespace, so that a quarrel over the rules stays cheap."""

BETWEEN_LOSSES = 60.0
"""Least seconds between two reports of lost notices: replacing a huge table may itself be what floods the buffer."""

BUFFER = 8 * 1024 * 1024
"""Octets of notices that may wait. A replace of 10,000 routes causes 1.6 MB (3.5 MB with the kernel's overhead)."""

STALE = 5.0
"""Seconds between checks for namespaces whose file is gone: an open socket would keep them alive."""

# linux/netfilter/nfnetlink.h, nf_tables.h
_NFNLGRP_NFTABLES = 7
_NFNL_SUBSYS_NFTABLES = 10
_FAMILIES = (1, 7)
"""NFPROTO_INET and NFPROTO_BRIDGE: the host has a table of our name in both."""
_NFGENMSG = 4
"""Octets of nfgenmsg: family, version, resource id."""
_NFTA_TABLE = 1
"""In every kind of notice that belongs to a table, this attribute is the table's name."""
_SO_RCVBUFFORCE = 33

_OURS = frozenset(bytes([family]) for family in _FAMILIES)
_NAME = TABLE.split()[1].encode() + b"\0"


@dataclass(slots=True)
class _Watched:
    netns: Netns
    sock: socket.socket
    due: float | None = None
    """When to report, on Trio's clock."""
    reported: float = float("-inf")
    lost: float = float("-inf")
    """When notices were last lost."""


class RulesetWatch:
    """One netlink socket in each watched namespace, all in one epoll set. `add` and `remove` work at once."""

    def __init__(self, *, on_drift: Callable[[NetnsId], None], buffer: int = BUFFER) -> None:
        """`on_drift` is called from `run` and must not raise."""
        self.on_drift = on_drift
        self._buffer = buffer
        self._epoll = select.epoll()
        self._watched: dict[NetnsId, _Watched] = {}
        self._by_descriptor: dict[int, _Watched] = {}

    def __contains__(self, netns: NetnsId) -> bool:
        return netns in self._watched

    def add(self, netns: Netns) -> None:
        """Watch a namespace from now on; nothing to do when it is watched already. Raises RetryError."""
        if netns.id in self._watched:
            return
        try:
            sock = netlink.socket_in(netns.path, netlink.NETLINK_NETFILTER)
        except OSError as error:
            raise RetryError(f"cannot watch the rules in network namespace {netns.path}: {error.strerror}") from error
        if identity.identify(netns.path) != netns.id:
            sock.close()
            raise RetryError(f"{netns.path} leads to another network namespace than {netns.id} by now")
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._buffer)
        netlink.join(sock, _NFNLGRP_NFTABLES)
        watched = _Watched(netns, sock)
        self._watched[netns.id] = self._by_descriptor[sock.fileno()] = watched
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def remove(self, netns: NetnsId) -> None:
        """Watch it no longer and let go of it. Nothing to do when it is not watched."""
        watched = self._watched.pop(netns, None)
        if watched is not None:
            del self._by_descriptor[watched.sock.fileno()]
            watched.sock.close()  # which also removes it from the epoll set

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled, then close everything."""
        task_status.started()
        stale = trio.current_time() + STALE
        try:
            while True:
                with trio.move_on_at(min([stale, *(w.due for w in self._watched.values() if w.due is not None)])):
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    for descriptor, _ in self._epoll.poll(0):
                        if (watched := self._by_descriptor.get(descriptor)) is not None:
                            self._read(watched)
                now = trio.current_time()
                if now >= stale:
                    stale = now + STALE
                    self._forget_stale()
                self._report(now)
        finally:
            for netns in list(self._watched):
                self.remove(netns)
            self._epoll.close()

    def _read(self, watched: _Watched) -> None:
        """Read what waits, up to a bound, so that a flood here does not delay everything else."""
        now = trio.current_time()
        for _ in range(_MOST_READ):
            try:
                data = watched.sock.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:  # ENOBUFS: notices were lost
                if now - watched.lost >= BETWEEN_LOSSES:
                    watched.lost = now
                    log.info("notices of rule changes were lost", netns=watched.netns.path, cause=error.strerror)
                    self._drifted(watched, now)
                continue
            if watched.due is None and self._may_be_drift(watched, data):
                self._drifted(watched, now)

    @staticmethod
    def _may_be_drift(watched: _Watched, data: bytes) -> bool:
        try:
            return _by_others(data)
        except Exception as error:  # noqa: BLE001 — the rules are looked at rather than believed
            log.warning("a notice of a rule change cannot be read", netns=watched.netns.path, cause=cause(error))
            return True

    @staticmethod
    def _drifted(watched: _Watched, now: float) -> None:
        watched.due = max(now, watched.reported + BETWEEN)

    def _report(self, now: float) -> None:
        for watched in list(self._watched.values()):
            if watched.due is not None and watched.due <= now:
                watched.due, watched.reported = None, now
                self.on_drift(watched.netns.id)

    def _forget_stale(self) -> None:
        for watched in list(self._watched.values()):
            if identity.identify(watched.netns.path) != watched.netns.id:
                self.remove(watched.netns.id)


_MOST_READ = 64
"""Datagrams taken from one socket at a time."""


def _by_others(data: bytes) -> bool:
    """Return whether a datagram reports a change to our table by another program. One datagram is one commit."""
    for message in netlink.messages(data):
        if message.port in OWN:
            return False
        if message.type >> 8 != _NFNL_SUBSYS_NFTABLES or message.body[:1] not in _OURS:
            continue
        for kind, value in netlink.attributes(message.body[_NFGENMSG:]):
            if kind == _NFTA_TABLE:
                if value == _NAME:
                    return True
                break
    return False
