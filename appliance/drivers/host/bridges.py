"""The bridges of this host: what it has there itself, read again whenever an address comes or goes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import links, netlink
from appliance.errors import cause
from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from appliance.faults import Faults
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import HostBridge

# linux/rtnetlink.h
_RTNLGRP_IPV4_IFADDR = 5
_RTNLGRP_IPV6_IFADDR = 9

SETTLE = 0.05
"""Seconds between a notice and the reading: addresses come in groups."""


class HostBridges:
    """The bridges in the namespace that the appliance runs in."""

    def __init__(self, *, bell: Callable[[], None], faults: Faults, every: float) -> None:
        """`bell` is rung when they have changed. They are read every so many seconds, and at each notice."""
        self._bell = bell
        self._faults = faults
        self._every = every
        self.now: tuple[HostBridge, ...] = ()
        """As they were read last."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Read them until cancelled. Started once they were read, or could not be: then the former ones stay."""
        with netlink.own_socket(netlink.NETLINK_ROUTE) as told:
            netlink.join(told, _RTNLGRP_IPV4_IFADDR)
            netlink.join(told, _RTNLGRP_IPV6_IFADDR)
            while True:
                self._read()
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                with trio.move_on_after(self._every):
                    await beat.until(partial(trio.lowlevel.wait_readable, told))
                    await trio.sleep(SETTLE)
                    _drain(told)
                beat()

    def _read(self) -> None:
        try:
            found = links.host_bridges()
        except Exception as error:  # noqa: BLE001 — whatever it is, the former ones stay
            self._faults.report("host bridges", "cannot read this host's bridges; the former ones stay", cause(error))
            return
        self._faults.over("host bridges")
        if found != self.now:
            self.now = found
            self._bell()


def _drain(told: socket) -> None:
    """Take all notices: what they say is read afresh. ENOBUFS, that some were lost, says the same."""
    while True:
        try:
            told.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            continue
