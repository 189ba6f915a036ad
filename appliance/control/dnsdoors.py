"""Doors for DNS: sockets inside workloads' namespaces at which they ask, whatever server they mean to ask.

A namespace has one beside the door of the data plane (control/doors.py), and it outlives that: what the workload asks
does not depend on its address. Rules lead questions there (nft/dns.nft) only while the data plane has the sockets.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from appliance.dataplane.dns.door import listen
from appliance.drivers.netns import identity, netlink
from appliance.errors import RetryError
from appliance.render.ruleset import DNS_DOOR_PORT

if TYPE_CHECKING:
    import socket

    from appliance.dataplane.api import DataPlane
    from appliance.model.network import Door, Netns, NetnsId


class DnsDoors:
    """The doors for DNS of this host."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._netns: dict[NetnsId, Netns] = {}
        """Those with a door."""

    def __contains__(self, netns: NetnsId) -> bool:
        """Whether one is open in that namespace."""
        return netns in self._netns

    def open(self, netns: Netns, door: Door) -> None:
        """Have the workload's questions answered in its namespace; one that is open goes on. About 0.5 ms.

        Raises RetryError where it cannot listen.
        """
        sockets: tuple[socket.socket, ...] = ()
        if netns.id not in self._netns:
            try:
                sockets = netlink.entered(netns.path, partial(_listen, netns))
            except OSError as error:
                words = f"cannot answer DNS at its port {DNS_DOOR_PORT}: {error.strerror or error}; the host does it"
                raise RetryError(words) from error
        self._plane.open_dns_door(door, sockets)
        self._netns[netns.id] = netns

    def close(self, netns: Netns) -> None:
        """Answer no more in that namespace. Rules must lead no more questions there."""
        if self._netns.pop(netns.id, None) is not None:
            self._plane.close_dns_door(netns.id)

    def let_go(self) -> None:
        """Close those whose namespaces are gone."""
        for netns in list(self._netns.values()):
            if identity.identify(netns.path) != netns.id:
                self.close(netns)


def _listen(netns: Netns) -> tuple[socket.socket, ...]:
    """Return sockets of the namespace that this thread is in. Raises OSError, also where it is not the right one."""
    if identity.identify(netns.path) != netns.id:
        raise FileNotFoundError(f"network namespace {netns.id} is gone")
    return listen(DNS_DOOR_PORT)
