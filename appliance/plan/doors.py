"""Which namespaces have a door, and which need a route to virtual IPs: both follow from their rulesets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.model.network import VipRoute, WorkloadDoor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.model.network import NetnsId, WorkloadRuleset


def doors(rulesets: Mapping[NetnsId, WorkloadRuleset]) -> dict[NetnsId, WorkloadDoor]:
    """Return the doors that these rules make room for. One needs the workload's address, which its callers have."""
    return {
        netns: WorkloadDoor(netns=r.netns, address=r.address, vip_range=r.vip_range, gateways=r.gateways)
        for netns, r in rulesets.items()
        if r.door and r.address is not None
    }


def routes(rulesets: Mapping[NetnsId, WorkloadRuleset]) -> dict[NetnsId, VipRoute]:
    """Return the routes of the namespaces that have no default route."""
    return {
        netns: VipRoute(netns=r.netns, vip_range=r.vip_range, gateway=r.proxy, gateways=r.gateways)
        for netns, r in rulesets.items()
        if r.internal
    }
