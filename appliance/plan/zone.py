"""Names: their addresses, the views that askers have of them, and where DNS answers."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from appliance.model.network import Zone
from appliance.plan.containers import container_subnets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from appliance.model.facts import Allocations, Snapshot
    from appliance.model.names import Name
    from appliance.model.network import NetnsId
    from appliance.model.sources import CallerSources
    from appliance.plan.containers import Group
    from appliance.plan.rulesets import GroupRoutes
    from appliance.plan.visitors import VisitorGroup


def host_zone(
    s: Snapshot,
    groups: tuple[Group, ...],
    routes: Mapping[NetnsId, GroupRoutes],
    visitors: tuple[VisitorGroup, ...],
    allocations: Allocations,
    sources: CallerSources,
    *,
    complete: bool,
) -> Zone:
    """Return what DNS answers on this host. Unless it is `complete`, some names have no address: nobody sees those."""
    return Zone(
        suffix=s.settings.suffix,
        names=allocations.vips,
        views=_views(groups, routes, visitors, None if complete else allocations.vips.keys()),
        subnets=frozenset(n for n in container_subnets(s.networks) if isinstance(n, IPv4Network)),
        askers={a: g.containers[0].declared.name for g in groups for a in g.addresses},
        visitors={a: group.option for group in visitors for a in group.addresses},
        vip_range=s.settings.vip_range,
        sources=sources,
    )


def _views(
    groups: tuple[Group, ...],
    routes: Mapping[NetnsId, GroupRoutes],
    visitors: tuple[VisitorGroup, ...],
    addressed: AbstractSet[Name] | None,
) -> dict[IPv4Address, frozenset[Name]]:
    """Return the names that each asker sees, of those that are `addressed` (None: all)."""
    views: dict[IPv4Address, frozenset[Name]] = {a: group.reach.names for group in visitors for a in group.addresses}
    for g in groups:
        for address in g.addresses:
            names = routes[g.netns].reach.names
            views[address] = views[address] | names if address in views else names
    return views if addressed is None else {asker: names & addressed for asker, names in views.items()}


def dns_addresses(s: Snapshot, groups: tuple[Group, ...], visitors: tuple[VisitorGroup, ...]) -> frozenset[IPv4Address]:
    """Return where DNS answers: on the networks that have workloads, always on meshbox's own, and for visitors."""
    found = {a for g in groups for a in g.gateways if isinstance(a, IPv4Address)}
    for network in s.networks:
        if network.name == s.settings.docker_network:
            found.update(a for a in network.gateways if isinstance(a, IPv4Address))
    return frozenset(found) | (s.settings.visitors.dns_listen if visitors else frozenset())
