"""Reports when another program has changed our table in a network namespace.

The kernel reports every commit to the group NFNLGRP_NFTABLES, object by object: the table, and the netlink port of the
program that committed. Changes by others to their own tables (Docker at a container's start) are ignored; any change by
others to ours is drift. Nothing is listed, so a quiet namespace costs nothing.

A container may commit as fast as it can. So all that is read is bounded: a part of what waits in each turn, and few
turns a second. A namespace that goes on like that is not listened to for a while; after that its rules are put back
unseen. One in which our rules are changed again and again gets them back less and less often.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.netns import identity, netlink
from appliance.drivers.nft.commits import OWN
from appliance.errors import RetryError, cause
from appliance.faults import Faults
from appliance.heartbeat import UNWATCHED
from appliance.render.ruleset import TABLE
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.heartbeat import Heartbeat
    from appliance.model.network import Netns, NetnsId

log = structlog.get_logger()

BETWEEN = Schedule((1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0))
"""Least seconds between two reports of one namespace, by the number of those in a row, so that a quarrel over the rules
stays cheap: putting them back takes up to 40 ms of CPU."""

QUARREL = 3
"""With so many reports in a row it is a quarrel, which is a fault until it is over."""

CALM = 60.0
"""Seconds without a report, or without a flood, after which it is over. Longer than the last of BETWEEN."""

PACE = 0.05
"""Seconds between two turns of reading: a wake-up for each commit of a flood would cost more than reading it."""

TURN = 1 << 18
"""Octets read from one namespace in a turn, in a fraction of a millisecond."""

FLOOD, WINDOW = 4 << 20, 2.0
"""Octets of others' notices in so many seconds that are a flood; each notice counts as LEAST at least. A table with
10,000 elements that somebody else loads makes 1.6 MB."""

LEAST = 1024

DEAF = Schedule((10.0, 20.0, 40.0, 60.0))
"""Seconds for which a namespace is not listened to, by the number of floods in a row."""

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
    sock: socket.socket | None
    """None while it is not listened to."""
    due: float | None = None
    """When to report, on Trio's clock, as all times here."""
    reported: float = -inf
    reports: int = 0
    """How many in a row."""
    lost: float = -inf
    """When notices were last lost."""
    counted: int = 0
    """Octets of others' notices since `counted_from`."""
    counted_from: float = -inf
    floods: int = 0
    """How many in a row."""
    flooded: float = -inf
    """When the last one began."""
    listen_at: float = inf
    """When to listen again."""


class RulesetWatch:
    """One netlink socket in each watched namespace, all in one epoll set. `add` and `remove` work at once."""

    def __init__(
        self, *, on_drift: Callable[[NetnsId], None], faults: Faults | None = None, buffer: int = BUFFER
    ) -> None:
        """`on_drift` is called from `run` and must not raise."""
        self.on_drift = on_drift
        self._faults = faults or Faults()
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
        watched = _Watched(netns, None)
        self._listen(watched)
        self._watched[netns.id] = watched

    def _listen(self, watched: _Watched) -> None:
        """Open its socket. Raises RetryError."""
        netns = watched.netns
        try:
            sock = netlink.socket_in(netns.path, netlink.NETLINK_NETFILTER)
        except OSError as error:
            raise RetryError(f"cannot watch the rules in network namespace {netns.path}: {error.strerror}") from error
        if identity.identify(netns.path) != netns.id:
            sock.close()
            raise RetryError(f"{netns.path} leads to another network namespace than {netns.id} by now")
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._buffer)
            netlink.join(sock, _NFNLGRP_NFTABLES)
        except OSError:
            sock.close()
            raise
        watched.sock = sock
        self._by_descriptor[sock.fileno()] = watched
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _ignore(self, watched: _Watched) -> None:
        """Close its socket, if it has one."""
        if watched.sock is not None:
            del self._by_descriptor[watched.sock.fileno()]
            watched.sock.close()  # which also removes it from the epoll set
            watched.sock = None

    def remove(self, netns: NetnsId) -> None:
        """Watch it no longer and let go of it. Nothing to do when it is not watched."""
        watched = self._watched.pop(netns, None)
        if watched is not None:
            self._ignore(watched)
            self._faults.drop(lambda key: key in {_quarrel(watched), _flood(watched)})

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled. What comes while this does not run waits in the sockets."""
        task_status.started()
        stale = trio.current_time() + STALE
        while True:
            due = min([stale, *map(_next, self._watched.values())])
            with trio.move_on_at(min(due, beat.slice_end(trio.current_time()))):
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                await self._read_all()
            beat()
            now = trio.current_time()
            if now >= stale:
                stale = now + STALE
                self._forget_stale()
                self._note_calm(now)
            self._listen_again(now)
            self._report(now)

    def close(self) -> None:
        """Watch nothing any more."""
        for netns in list(self._watched):
            self.remove(netns)
        self._epoll.close()

    async def _read_all(self) -> None:
        """Read in every namespace what waits there, up to a bound, and rest."""
        for descriptor, _ in self._epoll.poll(0):
            if (watched := self._by_descriptor.get(descriptor)) is not None:
                self._read(watched, trio.current_time())
                await trio.lowlevel.checkpoint()
        await trio.sleep(PACE)

    def _read(self, watched: _Watched, now: float) -> None:
        sock = watched.sock
        left = TURN
        while sock is not None and left > 0:
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:  # ENOBUFS: notices were lost
                left -= LEAST
                if now - watched.lost >= BETWEEN_LOSSES:
                    watched.lost = now
                    log.info("notices of rule changes were lost", netns=watched.netns.path, cause=error.strerror)
                    self._drifted(watched, now)
                continue
            left -= max(len(data), LEAST)
            if _by_us(data):
                continue
            if watched.due is None and self._may_be_drift(watched, data):
                self._drifted(watched, now)
            if self._is_flood(watched, len(data), now):
                return

    def _is_flood(self, watched: _Watched, size: int, now: float) -> bool:
        """Count others' octets; listen no more for a while if there are too many."""
        if now - watched.counted_from > WINDOW:
            watched.counted, watched.counted_from = 0, now
        watched.counted += max(size, LEAST)
        if watched.counted < FLOOD:
            return False
        watched.floods += 1
        watched.flooded = now
        watched.counted = 0
        watched.due = None
        seconds = DEAF.after(watched.floods)
        watched.listen_at = now + seconds
        self._ignore(watched)
        self._faults.report(
            _flood(watched),
            "rules in a container change too fast to be followed; ours are put back now and then, unseen",
            "more than 4 MiB of changes in 2 s",
            netns=watched.netns.path,
        )
        return True

    def _listen_again(self, now: float) -> None:
        """Listen to those again that have flooded, and report them: what they did meanwhile was not seen."""
        for watched in list(self._watched.values()):
            if watched.listen_at <= now:
                watched.listen_at = inf
                try:
                    self._listen(watched)
                except RetryError:  # it is gone, which `_forget_stale` notices, or there is no descriptor
                    watched.listen_at = now + DEAF[0]
                watched.due = now

    def _note_calm(self, now: float) -> None:
        """Forget quarrels and floods that are over."""
        for watched in self._watched.values():
            if watched.reports and watched.due is None and now - watched.reported > CALM:
                watched.reports = 0
                self._faults.over(_quarrel(watched))
            if watched.floods and watched.sock is not None and now - watched.flooded > DEAF[-1] + CALM:
                watched.floods = 0
                self._faults.over(_flood(watched))

    @staticmethod
    def _may_be_drift(watched: _Watched, data: bytes) -> bool:
        try:
            return _by_others(data)
        except Exception as error:  # noqa: BLE001 — the rules are looked at rather than believed
            log.warning("a notice of a rule change cannot be read", netns=watched.netns.path, cause=cause(error))
            return True

    @staticmethod
    def _drifted(watched: _Watched, now: float) -> None:
        pause = BETWEEN.after(watched.reports) if watched.reports else 0.0
        watched.due = max(now, watched.reported + pause)

    def _report(self, now: float) -> None:
        for watched in list(self._watched.values()):
            if watched.due is not None and watched.due <= now:
                watched.due, watched.reported = None, now
                watched.reports += 1
                if watched.reports >= QUARREL and not watched.floods:
                    self._faults.report(
                        _quarrel(watched),
                        "somebody changes our rules again and again; they are put back less and less often",
                        "table inet meshbox is changed by another program",
                        netns=watched.netns.path,
                    )
                self.on_drift(watched.netns.id)

    def _forget_stale(self) -> None:
        for watched in list(self._watched.values()):
            if identity.identify(watched.netns.path) != watched.netns.id:
                self.remove(watched.netns.id)


def _next(watched: _Watched) -> float:
    """Return when something is to be done for a namespace."""
    return watched.listen_at if watched.due is None else min(watched.due, watched.listen_at)


def _quarrel(watched: _Watched) -> tuple[str, str]:
    return "quarrel over rules", watched.netns.path


def _flood(watched: _Watched) -> tuple[str, str]:
    return "flood of rules", watched.netns.path


def _by_us(data: bytes) -> bool:
    """Return whether a datagram reports a commit of ours. One datagram is one commit."""
    message = next(netlink.messages(data), None)
    return message is not None and message.port in OWN


def _by_others(data: bytes) -> bool:
    """Return whether a datagram reports a change to our table by another program."""
    if _NAME not in data:
        return False
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
