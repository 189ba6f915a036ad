"""Renews the lease of port claims (nft/bridge.nft) while they are what the facts say.

The claims of an appliance that is away grow old: Docker gives an address to another container, whose frames they would
refuse. So they hold for LEASE seconds only, and nothing but this renews them. It talks to the kernel itself: a renewal
costs less than 1 ms, and needs neither nft nor its helper, which may hang.
"""

from __future__ import annotations

import os
import socket
from struct import Struct
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import netlink
from appliance.drivers.nft.commits import OWN
from appliance.heartbeat import UNWATCHED
from appliance.render.ruleset import BRIDGE_TABLE, LEASE, LEASED

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.faults import Faults
    from appliance.heartbeat import Heartbeat

EVERY = LEASE / 3
"""Seconds between renewals."""
AGAIN = 1.0
"""Seconds until the next look where it was not renewed: as while a pass brings the claims up to date."""

# linux/netfilter/nfnetlink.h, nf_tables.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWSETELEM, _NFT_MSG_DELSETELEM = 12, 14
_NFTA_SET_ELEM_LIST_TABLE, _NFTA_SET_ELEM_LIST_SET, _NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
_NFTA_LIST_ELEM = 1
_NFTA_SET_ELEM_KEY, _NFTA_SET_ELEM_TIMEOUT = 1, 4
_NFTA_DATA_VALUE = 1
_NLM_F_CREATE = 0x400
_NESTED = 0x8000
_NFPROTO_BRIDGE = 7
_NAME = BRIDGE_TABLE.split()[1].encode() + b"\0"
_nfgenmsg = Struct(">BBH")
"""Family, version, resource id."""


class Lease:
    """The lease of this host's port claims."""

    def __init__(
        self,
        *,
        fresh: Callable[[], bool],
        faults: Faults,
        every: float = EVERY,
        seconds: float = LEASE,
    ) -> None:
        """`fresh` says whether the claims are in place and what the facts say; only then are they renewed."""
        self._fresh = fresh
        self._faults = faults
        self._every = every
        self._seconds = seconds
        self._stopped = False

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Renew it every so many seconds until cancelled."""
        task_status.started()
        pause = self._every
        while True:
            await beat.sleep(pause)
            pause = self._every if self._renew() else AGAIN

    def _renew(self) -> bool:
        """Renew it if the claims are fresh; return whether that is done."""
        if self._stopped or not self._fresh():
            return False
        try:
            renew(self._seconds)
        except OSError as error:
            words = "the lease of port claims cannot be renewed; without it they end; will try again"
            self._faults.report("lease", words, error.strerror)
            return False
        self._faults.over("lease")
        return True

    def stop(self) -> None:
        """Renew it no more: it is about to be ended."""
        self._stopped = True


def renew(seconds: float) -> None:
    """Let the claims hold for so many seconds from now. Raises OSError, as where there is no table.

    One transaction empties the set and fills it: adding what is there does not prolong it before Linux 6.12.
    """
    names = netlink.attribute(_NFTA_SET_ELEM_LIST_TABLE, _NAME)
    names += netlink.attribute(_NFTA_SET_ELEM_LIST_SET, b"lease\0")
    timeout = netlink.attribute(_NFTA_SET_ELEM_TIMEOUT, round(seconds * 1000).to_bytes(8, "big"))
    elements = b"".join(
        _nested(
            _NFTA_LIST_ELEM,
            _nested(_NFTA_SET_ELEM_KEY, netlink.attribute(_NFTA_DATA_VALUE, bytes([kind]))) + timeout,
        )
        for kind in range(len(LEASED))  # linux/if_packet.h has them in this order, from 0
    )
    table = _nfgenmsg.pack(_NFPROTO_BRIDGE, 0, 0)
    batch = _nfgenmsg.pack(socket.AF_UNSPEC, 0, _NFNL_SUBSYS_NFTABLES)
    empty = netlink.request(_kind(_NFT_MSG_DELSETELEM), netlink.ACK, table + names)
    fill = netlink.request(
        _kind(_NFT_MSG_NEWSETELEM),
        netlink.ACK | _NLM_F_CREATE,
        table + names + _nested(_NFTA_SET_ELEM_LIST_ELEMENTS, elements),
    )
    with netlink.own_socket(netlink.NETLINK_NETFILTER) as sock:
        OWN.add(sock.getsockname()[0])
        begin, end = netlink.request(_BATCH_BEGIN, 0, batch), netlink.request(_BATCH_END, 0, batch)
        sock.send(b"".join((begin, empty, fill, end)))
        _raise_errors(sock)


def _raise_errors(sock: socket.socket) -> None:
    """Read the answers, one for each message; the kernel has given them all by now."""
    while True:
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        for message in netlink.messages(data):
            number = -int.from_bytes(message.body[:4], "little", signed=True)
            if message.type == netlink.NLMSG_ERROR and number:
                raise OSError(number, os.strerror(number))


def _kind(message: int) -> int:
    return _NFNL_SUBSYS_NFTABLES << 8 | message


def _nested(kind: int, value: bytes) -> bytes:
    return netlink.attribute(kind | _NESTED, value)
