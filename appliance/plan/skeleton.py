"""The skeleton of a host's wanted state: rules, names and sockets; nothing here depends on which backends are ready.

Which container may reach what (reaches.py) decides which virtual IPs and ports are handed out (allocate.py). These make
the routes of each namespace (rulesets.py), and routes make sockets, rules and names (zone.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.model.network import Listener
from appliance.plan.allocate import allocate, shortage
from appliance.plan.containers import grouped
from appliance.plan.doors import caller_sources, callers
from appliance.plan.portclaims import network_bridges
from appliance.plan.reaches import Reaches, demand
from appliance.plan.rulesets import RouteMaps, host_ruleset, may_call, peers, visitor_rules, workload_rulesets
from appliance.plan.turns import in_turns, reused
from appliance.plan.visitors import visitor_groups
from appliance.plan.zone import dns_addresses, host_zone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address

    from appliance.model.facts import Allocations, Snapshot
    from appliance.model.names import Destination, Protocol
    from appliance.model.network import HostRuleset, NetnsId, WorkloadRuleset, Zone
    from appliance.model.sources import CallerSources
    from appliance.plan.containers import Group, MeshContainer
    from appliance.plan.rulesets import GroupRoutes
    from appliance.plan.turns import Turns
    from appliance.plan.visitors import VisitorGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The wanted state without backends. Maps have one entry per destination, namespace or container id."""

    allocations: Allocations
    closed: frozenset[Destination]
    """Destinations that only ended containers offer or reach: they keep their ports and have no listener."""
    sockets: Mapping[Destination, Listener]
    rulesets: Mapping[NetnsId, WorkloadRuleset]
    host_ruleset: HostRuleset
    sources: CallerSources
    dns_addresses: frozenset[IPv4Address]
    zone: Zone
    addresses: Mapping[str, IPv4Address]
    """Where this host reaches each container."""
    shortage: str


class Skeletons:
    """Makes one skeleton after another. What did not change is the same object as in the last one."""

    def __init__(self) -> None:
        self._inputs: tuple[object, ...] = ()
        self._kept: Allocations | None = None
        self._last: Skeleton | None = None
        self._reaches = Reaches()
        self._maps = RouteMaps()

    def of(self, s: Snapshot, containers: tuple[MeshContainer, ...], remote: frozenset[Destination]) -> Turns[Skeleton]:
        """Return the skeleton for these containers; `remote` is what other machines serve."""
        machines = [(m.node, m.address, may_call(m)) for m in s.machines]
        bridges = network_bridges(s.networks, s.bridges).keys()
        facts = (s.settings, dict(s.specs), s.networks, bridges, s.host_addresses, machines, s.unusable_ports, remote)
        inputs = (*facts, s.registry_ports, dict(s.kept), [c.identity for c in containers])
        last = self._last
        if last is None or inputs != self._inputs or s.allocations not in (self._kept, last.allocations):
            last = yield from self._make(s, containers, remote)
            self._inputs, self._kept, self._last = inputs, s.allocations, last
        return last

    def _make(
        self, s: Snapshot, containers: tuple[MeshContainer, ...], remote: frozenset[Destination]
    ) -> Turns[Skeleton]:
        last = self._last
        reaches = yield from self._reaches.of(s, containers, remote)
        yield
        known = self._reaches.catalogue
        visitors = visitor_groups(s, known)
        need = yield from demand(containers, reaches, visitors, known)
        yield
        groups = grouped(containers, {n.name: n for n in s.networks}, s.kept)
        calling = callers(s, containers, groups)
        allocations = allocate(
            s.allocations,
            need.names,
            need.destinations,
            s.settings,
            s.now,
            s.unusable_ports,
            calling.addresses.keys(),
            calling.numbered,
        )
        lacking = shortage(allocations, need.names, need.destinations, s.settings, s.unusable_ports)
        yield
        routes = yield from self._maps.of(allocations, groups, reaches)
        allowed = yield from _callers(groups, routes, visitors, allocations)
        yield
        sockets = _sockets(allocations, need.closed, allowed, peers(s), need.offered)
        sockets = reused(last.sockets if last else {}, sockets)
        yield
        rulesets = reused(last.rulesets if last else {}, workload_rulesets(s, groups, routes))
        yield
        answering = dns_addresses(s, groups, visitors)
        rules = visitor_rules(s, visitors, self._maps)
        sources = caller_sources(calling, allocations, s.settings.vip_range)
        return Skeleton(
            allocations=allocations,
            closed=need.closed,
            sockets=sockets,
            rulesets=rulesets,
            host_ruleset=host_ruleset(s, groups, _listening(allocations, need.closed, last), answering, rules),
            sources=sources,
            dns_addresses=answering,
            zone=host_zone(s, groups, routes, visitors, allocations, sources, complete=not lacking),
            addresses={c.workload.id: g.address for g in groups if g.address is not None for c in g.containers},
            shortage=lacking,
        )


def _callers(
    groups: tuple[Group, ...],
    routes: Mapping[NetnsId, GroupRoutes],
    visitors: tuple[VisitorGroup, ...],
    allocations: Allocations,
) -> Turns[Mapping[int, list[frozenset[IPv4Address]]]]:
    """Return the addresses that may call each proxy port."""
    callers: dict[int, list[frozenset[IPv4Address]]] = {}

    def add(group: Group) -> None:
        for route in routes[group.netns].routes:
            callers.setdefault(route.proxy_port, []).append(group.addresses)

    yield from in_turns(add, groups)
    for visiting in visitors:
        for d in visiting.reach.destinations & allocations.ports.keys():
            callers.setdefault(allocations.ports[d], []).append(visiting.addresses)
    return callers


def _sockets(
    allocations: Allocations,
    closed: AbstractSet[Destination],
    callers: Mapping[int, list[frozenset[IPv4Address]]],
    machines: frozenset[IPv4Address],
    offered: AbstractSet[Destination],
) -> dict[Destination, Listener]:
    """Return the listeners without backends; other machines may call what is offered here."""
    return {
        d: Listener(
            destination=d,
            port=port,
            vip=allocations.vips[d.name],
            callers=frozenset().union(*callers.get(port, ())),
            peers=machines if d in offered else frozenset(),
        )
        for d, port in allocations.ports.items()
        if d not in closed
    }


def _listening(
    allocations: Allocations, closed: frozenset[Destination], last: Skeleton | None
) -> frozenset[tuple[Protocol, int]]:
    """Return the ports of the listeners."""
    if last is not None and allocations is last.allocations and closed == last.closed:
        return last.host_ruleset.listening
    return frozenset((d.protocol, port) for d, port in allocations.ports.items() if d not in closed)
