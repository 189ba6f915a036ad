"""Which addresses are accepted from which ports of this host's bridges: a caller is what the port says it is.

Every container on a bridge claims what Docker gave it, labelled or not: one outside the mesh must not be able to lend
its name either. A container on several networks may send each of its addresses from each of its ports, and answer for
them there, as Linux does by default (the weak host model of RFC 1122, section 3.3.4.2).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from appliance.model.mac import link_local
from appliance.model.network import BridgeRuleset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from appliance.model.facts import DockerNetwork, HostBridge, Snapshot
    from appliance.plan.containers import MeshContainer


class PortClaims:
    """Makes the claims of one snapshot after another. Those that did not change are the same object as before."""

    def __init__(self) -> None:
        self._inputs: tuple[object, ...] | None = None
        self._last: BridgeRuleset | None = None

    def of(self, s: Snapshot, containers: Iterable[MeshContainer]) -> BridgeRuleset | None:
        """Return the claims; None where no container of the mesh runs, or the kernel cannot hold anybody to them."""
        wanted = s.settings.port_claims and any(c.netns is not None for c in containers)
        inputs = (wanted, s.settings.vip_range, s.members, s.bridges, s.networks)
        if inputs != self._inputs:
            self._inputs = inputs
            self._last = claims(s) if wanted else None
        return self._last


def claims(s: Snapshot) -> BridgeRuleset:
    """Return what each container on a bridge claims, and what the host has on the bridges of Docker's networks."""
    own = list(network_bridges(s.networks, s.bridges).values())
    macs = frozenset((port, mac) for m in s.members for port in m.ports for mac in m.macs)
    held = {(port, address) for m in s.members for port in m.ports for address in m.addresses}
    held |= {(port, link_local(mac)) for port, mac in macs}
    return BridgeRuleset(
        vip_range=s.settings.vip_range,
        macs=macs,
        addresses=frozenset((port, a) for port, a in held if isinstance(a, IPv4Address)),
        addresses6=frozenset((port, a) for port, a in held if isinstance(a, IPv6Address)),
        host_macs=frozenset(bridge.mac for bridge in own),
        host_addresses=frozenset(a for bridge in own for a in bridge.addresses if isinstance(a, IPv4Address)),
        host_addresses6=frozenset(a for bridge in own for a in bridge.addresses if isinstance(a, IPv6Address)),
    )


def network_bridges(networks: Iterable[DockerNetwork], bridges: Iterable[HostBridge]) -> Mapping[str, HostBridge]:
    """Return the bridge of each of Docker's networks, by the network's name, where this host really has it."""
    there = {bridge.name: bridge for bridge in bridges}
    return {n.name: there[n.bridge] for n in networks if n.bridge in there}
