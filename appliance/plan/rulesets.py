"""Rules as values: what may vary in the nftables tables of workloads' namespaces and of the host.

How they read as text is decided in render/ruleset.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, TypeVar

from appliance.model.network import HostRuleset, Netns, RegistryGuard, Route, VisitorRules, WorkloadRuleset
from appliance.plan.containers import container_subnets
from appliance.plan.policy import Reach
from appliance.plan.portclaims import network_bridges
from appliance.plan.turns import in_turns, reused
from appliance.plan.visitors import GUEST_OPTION, HOST_OPTION

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from appliance.model.facts import Allocations, Machine, Snapshot
    from appliance.model.names import Destination, Protocol
    from appliance.model.network import Listener, NetnsId
    from appliance.plan.containers import Group
    from appliance.plan.turns import Turns
    from appliance.plan.visitors import VisitorGroup

    Ports = frozenset[tuple[Protocol, int]]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRoutes:
    """What the containers of one namespace may reach, and the routes there."""

    reach: Reach
    routes: frozenset[Route]
    """Destinations without a proxy port have none."""


class RouteMaps:
    """Computes the redirect maps of namespaces for one pass after another: only differences are computed anew."""

    def __init__(self) -> None:
        self._allocations: Allocations | None = None
        self._routes: dict[Destination, Route] = {}
        self._groups: dict[NetnsId, GroupRoutes] = {}

    def of(
        self, allocations: Allocations, groups: tuple[Group, ...], reaches: Mapping[str, Reach]
    ) -> Turns[Mapping[NetnsId, GroupRoutes]]:
        """Return the routes of each namespace; `reaches` by Docker id."""
        before = self._routes
        after = before if allocations is self._allocations else reused(before, _routes(allocations))
        candidates = frozenset() if after is before else before.keys() | after.keys()
        moved = frozenset(d for d in candidates if before.get(d) is not after.get(d))

        def current(group: Group) -> GroupRoutes:
            reachable = _merged(reaches[c.workload.id] for c in group.containers)
            former = self._groups.get(group.netns)
            if former is None:
                return GroupRoutes(reach=reachable, routes=_known(after, reachable.destinations))
            known = former.reach
            if known == reachable and moved.isdisjoint(reachable.destinations):
                return former
            gone = (known.destinations - reachable.destinations) | (moved & known.destinations)
            come = (reachable.destinations - known.destinations) | (moved & reachable.destinations)
            return GroupRoutes(reach=reachable, routes=(former.routes - _known(before, gone)) | _known(after, come))

        found = yield from in_turns(current, groups)
        self._allocations, self._routes = allocations, after
        self._groups = {group.netns: routes for group, routes in zip(groups, found, strict=True)}
        return self._groups

    def to(self, destinations: Iterable[Destination]) -> frozenset[Route]:
        """Return the routes to these destinations, as of the last pass; those without a proxy port have none."""
        return _known(self._routes, destinations)


def _routes(allocations: Allocations) -> dict[Destination, Route]:
    return {
        d: Route(vip=allocations.vips[d.name], port=d.port, protocol=d.protocol, proxy_port=port)
        for d, port in allocations.ports.items()
    }


def _known(routes: Mapping[Destination, Route], destinations: Iterable[Destination]) -> frozenset[Route]:
    return frozenset(routes[d] for d in destinations if d in routes)


def _merged(reaches: Iterable[Reach]) -> Reach:
    """Return what containers that share a namespace may reach: the rules cannot tell them apart."""
    first, *others = reaches
    if not others:
        return first
    return Reach(
        first.destinations.union(*(r.destinations for r in others)), first.names.union(*(r.names for r in others))
    )


def workload_rulesets(
    s: Snapshot, groups: tuple[Group, ...], routes: Mapping[NetnsId, GroupRoutes]
) -> dict[NetnsId, WorkloadRuleset]:
    """Return the rules of each namespace."""
    hosts = frozenset(a for a in s.host_addresses if not a.is_loopback)
    subnets = frozenset(container_subnets(s.networks))
    return {
        g.netns: WorkloadRuleset(
            netns=Netns(id=g.netns, path=g.path),
            proxy=g.proxy,
            dns_port=s.settings.dns_port,
            vip_range=s.settings.vip_range,
            proxy_ports=s.settings.proxy_ports,
            routes=routes[g.netns].routes,
            gateways=g.gateways,
            hosts=hosts,
            subnets=subnets,
            published=g.published,
            internal=g.internal,
            address=g.address,
            door=s.settings.doors,  # also before the address is known: these rules need not change then
        )
        for g in groups
    }


def host_ruleset(
    s: Snapshot,
    groups: tuple[Group, ...],
    listening: frozenset[tuple[Protocol, int]],
    dns_addresses: frozenset[IPv4Address],
    visitors: VisitorRules | None,
) -> HostRuleset:
    """Return the rules of the host; `listening` are the ports on which the proxy will listen."""
    guests = s.settings.visitors.guests
    from_bridges, from_anywhere = _ways(s, groups)
    return HostRuleset(
        proxy_ports=s.settings.proxy_ports,
        dns_port=s.settings.dns_port,
        workloads=frozenset(a for g in groups for a in g.addresses) | guests,
        from_bridges=from_bridges,
        from_anywhere=from_anywhere | guests,
        published=frozenset((a, *port) for g in groups for a in g.addresses for port in g.published),
        peers=peers(s),
        machines=frozenset(m.address for m in _others(s)),
        dns_addresses=dns_addresses,
        subnets=frozenset(n for n in container_subnets(s.networks) if isinstance(n, IPv4Network)),
        listening=listening,
        visitors=visitors,
        registry=_registry_guard(s),
    )


def _registry_guard(s: Snapshot) -> RegistryGuard | None:
    """Return who may not dial the registry's ports; None where the registry has none.

    The one that this machine asks is in a container of this host if its address is on a Docker network.
    """
    known = s.registry_ports
    if not known.ports:
        return None
    subnets = [n for n in container_subnets(s.networks) if isinstance(n, IPv4Network)]
    inside = frozenset(
        a for a in known.advertised if a not in s.host_addresses and any(a in subnet for subnet in subnets)
    )
    return RegistryGuard(
        ports=known.ports,
        hosts=(known.hosts | {m.address for m in s.machines}) - s.host_addresses,
        agents=inside | known.exempt,
        bridges=frozenset(n.bridge for n in s.networks if n.bridge),
    )


def _ways(s: Snapshot, groups: tuple[Group, ...]) -> tuple[frozenset[tuple[str, IPv4Address]], frozenset[IPv4Address]]:
    """Return the bridge and address of each workload, and the addresses that may come from anywhere.

    A container on several networks may send each of its addresses through each of them.
    """
    bridges = network_bridges(s.networks, s.bridges)
    known = [g for g in groups if g.networks <= bridges.keys()]
    return (
        frozenset((bridges[n].name, a) for g in known for n in g.networks for a in g.addresses),
        frozenset(a for g in groups if not g.networks <= bridges.keys() for a in g.addresses),
    )


def visitor_rules(s: Snapshot, visitors: tuple[VisitorGroup, ...], maps: RouteMaps) -> VisitorRules | None:
    """Return the rules for the visitors of this host; None where there are none."""
    routes = {group.option: maps.to(group.reach.destinations) for group in visitors}
    if not routes:
        return None
    return VisitorRules(
        vip_range=s.settings.vip_range,
        host_routes=routes.get(HOST_OPTION, frozenset()),
        guest_routes=routes.get(GUEST_OPTION, frozenset()),
        guests=s.settings.visitors.guests,
    )


def peers(s: Snapshot) -> frozenset[IPv4Address]:
    """Return the addresses of the other machines that may call this one."""
    return frozenset(m.address for m in _others(s) if may_call(m))


def may_call(machine: Machine) -> bool:
    """Whether calls from the machine are let in: it is in use, or it has only lost its Consul and says so itself."""
    return machine.healthy or machine.answers


def _others(s: Snapshot) -> list[Machine]:
    """Return the other machines. One that claims an address of this host is none: no call from there is let in."""
    return [m for m in s.machines if m.node != s.settings.node and m.address not in s.host_addresses]


class Closings:
    """Puts into the rules what is closed, for one pass after another: nothing serves it.

    The rules refuse what the proxy could only accept and reset: in callers' namespaces for what comes through doors,
    and on the host for all else. What did not change is the same object, and a change of readiness touches only
    namespaces that reach what it concerns.
    """

    def __init__(self) -> None:
        self.rulesets: Mapping[NetnsId, WorkloadRuleset] = {}
        self.host_ruleset: HostRuleset | None = None
        self._open: Mapping[NetnsId, WorkloadRuleset] | None = None
        """The rules before anything was closed in them."""
        self._routes: frozenset[Route] = frozenset()
        self._ports: Ports = frozenset()
        self._to_peers: Ports = frozenset()
        self._concerned: frozenset[Destination] = frozenset()
        """What has changed since a pass got to its end."""

    def of(
        self,
        rulesets: Mapping[NetnsId, WorkloadRuleset],
        host_ruleset: HostRuleset,
        listeners: Mapping[Destination, Listener],
        concerned: Collection[Destination],
    ) -> Turns[None]:
        """Close in these rules what has no backends. With the same rules only `concerned` destinations have changed."""
        self._concerned = self._concerned.union(concerned)
        same = rulesets is self._open
        if same and not self._concerned:
            return
        changed = [listeners[d] for d in self._concerned if d in listeners] if same else []
        looked_at = changed if same else listeners.values()
        closed = [x for x in looked_at if all(b.retiring for b in x.backends)]
        routes = _after(self._routes if same else frozenset(), _routes_to(changed), _routes_to(closed))
        ports = _after(self._ports if same else frozenset(), _ports(changed), _ports(closed))
        yield
        closed = [x for x in looked_at if not any(b.local for b in x.backends)] if host_ruleset.peers else []
        to_peers = _after(self._to_peers if same else frozenset(), _ports(changed), _ports(closed))
        listening = host_ruleset.listening  # what has gone from there was not looked at
        host = replace(host_ruleset, closed=ports & listening, closed_to_peers=to_peers & listening)
        yield
        if not same or routes is not self._routes:
            self.rulesets = yield from self._close(rulesets, routes)
        self.host_ruleset = self.host_ruleset if host == self.host_ruleset else host
        self._routes, self._ports, self._to_peers = routes, ports, to_peers
        self._open, self._concerned = rulesets, frozenset()

    def _close(
        self, rulesets: Mapping[NetnsId, WorkloadRuleset], routes: frozenset[Route]
    ) -> Turns[Mapping[NetnsId, WorkloadRuleset]]:
        """Return these rules with those of their routes closed that are among `routes`."""
        former = self._open or {}
        moved = routes ^ self._routes

        def current(netns: NetnsId) -> WorkloadRuleset:
            plain, known = rulesets[netns], self.rulesets.get(netns)
            if known is not None and former.get(netns) is plain and moved.isdisjoint(plain.routes):
                return known
            closed = plain.routes & routes if plain.door else frozenset()
            found = replace(plain, closed=closed) if closed else plain
            return known if known is not None and known == found else found

        found = yield from in_turns(current, rulesets)
        return dict(zip(rulesets, found, strict=True))


def _after(before: frozenset[_T], changed: Iterable[_T], closed: Iterable[_T]) -> frozenset[_T]:
    """Return what is closed after these changes; the same object where that is nothing else."""
    after = before.difference(changed).union(closed)
    return before if after == before else after


def _routes_to(listeners: Iterable[Listener]) -> list[Route]:
    return [
        Route(vip=x.vip, port=x.destination.port, protocol=x.destination.protocol, proxy_port=x.port)
        for x in listeners
        if x.vip is not None
    ]


def _ports(listeners: Iterable[Listener]) -> list[tuple[Protocol, int]]:
    return [(x.destination.protocol, x.port) for x in listeners]
