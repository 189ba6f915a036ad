"""All of a host's wanted state that does not depend on which backends are ready: rules, names, sockets.

`Skeletons` remembers what it made last and hands out the same objects for whatever did not change. Results never depend
on that memory, only the time does: what is the same object is compared, and skipped by the next diff, at a glance.
It works in turns of about a millisecond (generators that yield between them), so that others can run in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, TypeVar

from appliance.model.network import HostRuleset, Listener, Netns, Route, VisitorRules, WorkloadRuleset, Zone
from appliance.plan.allocate import allocate, shortage
from appliance.plan.members import groups
from appliance.plan.policy import Catalogue, Reach, catalogue, reach, reach_after
from appliance.plan.visitors import GUEST_OPTION, HOST_OPTION, visitor_groups

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv6Network

    from appliance.model.facts import Allocations, Machine, Snapshot
    from appliance.model.names import Destination, Name, Protocol
    from appliance.model.network import NetnsId
    from appliance.plan.members import Group, MeshContainer
    from appliance.plan.visitors import VisitorGroup

_T = TypeVar("_T")

TURN = 16
"""Containers looked at in one turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The wanted state without backends. Maps have one entry per destination, namespace or container id."""

    allocations: Allocations
    closed: frozenset[Destination]
    """Those that only containers that have ended offer or reach: they keep their ports, and nobody listens there."""
    sockets: Mapping[Destination, Listener]
    rulesets: Mapping[NetnsId, WorkloadRuleset]
    host_ruleset: HostRuleset
    dns_addresses: frozenset[IPv4Address]
    zone: Zone
    addresses: Mapping[str, IPv4Address]
    """Where this host reaches each container."""
    shortage: str


class Skeletons:
    """Makes shapes, one after another."""

    def __init__(self) -> None:
        self._inputs: tuple[object, ...] = ()
        self._kept: Allocations | None = None
        self._shape: Skeleton | None = None
        self._known = Catalogue()
        self._reaches: dict[str, tuple[MeshContainer, Reach]] = {}
        self._routes: dict[Destination, Route] = {}
        self._former_routes: dict[Destination, Route] = {}
        self._group_routes: dict[NetnsId, tuple[Reach, frozenset[Route]]] = {}

    def shape(
        self, s: Snapshot, members: tuple[MeshContainer, ...], remote: frozenset[Destination]
    ) -> Generator[None, None, Skeleton]:
        """Return the shape for these members; `remote` is what other machines serve."""
        machines = [(m.node, m.address, _may_call(m)) for m in s.machines]
        facts = (s.settings, dict(s.specs), s.networks, s.host_addresses, machines, s.unusable_ports, remote)
        inputs = (*facts, [m.shape for m in members])
        last = self._shape
        if last is None or inputs != self._inputs or s.allocations not in (self._kept, last.allocations):
            last = yield from self._make(s, members, remote)
            self._inputs, self._kept, self._shape = inputs, s.allocations, last
        return last

    def _make(
        self, s: Snapshot, members: tuple[MeshContainer, ...], remote: frozenset[Destination]
    ) -> Generator[None, None, Skeleton]:
        reaches = yield from self._reach_all(s, members, remote)
        yield
        names: set[Name] = set(self._known.destinations)
        wanted: set[Destination] = set()
        offered: set[Destination] = set()
        kept: set[Destination] = set()
        for number, member in enumerate(members):
            if not number % TURN:
                yield
            offers = [destination for destination, _ in member.offers]
            names |= reaches[member.workload.id].names
            offered.update(offers)
            concerned = kept if member.asleep else wanted
            concerned |= reaches[member.workload.id].destinations
            concerned.update(offers)
        visiting = visitor_groups(s, self._known)
        for party in visiting:
            names |= party.reach.names
            wanted |= party.reach.destinations
        closed = frozenset(kept - wanted)
        wanted |= kept
        yield
        allocations = allocate(s.allocations, names, wanted, s.settings, s.now, s.unusable_ports)
        lacking = shortage(allocations, names, wanted, s.settings, s.unusable_ports)
        moved = self._route_all(allocations)
        yield
        networks = {n.name: n for n in s.networks}
        inside = groups(members, networks)
        routes: dict[NetnsId, tuple[Reach, frozenset[Route]]] = {}
        callers: dict[int, list[frozenset[IPv4Address]]] = {}
        for number, g in enumerate(inside):
            if not number % TURN:
                yield
            routes[g.netns] = self._routes_of(g, _merged(reaches[m.workload.id] for m in g.members), moved)
            for route in routes[g.netns][1]:
                callers.setdefault(route.proxy_port, []).append(g.addresses)
        self._group_routes = routes
        gateways = {a for g in inside for a in g.gateways if isinstance(a, IPv4Address)}
        if s.settings.docker_network in networks:
            gateways.update(a for a in networks[s.settings.docker_network].gateways if isinstance(a, IPv4Address))
        dns_addresses = frozenset(gateways) | (s.settings.visitors.dns_listen if visiting else frozenset())
        others = [m for m in s.machines if m.node != s.settings.node and m.address not in s.host_addresses]
        peers = frozenset(m.address for m in others if _may_call(m))
        for party in visiting:
            for d in party.reach.destinations & allocations.ports.keys():
                callers.setdefault(allocations.ports[d], []).append(party.addresses)
        subnets = frozenset(net for net in _container_subnets(s) if isinstance(net, IPv4Network))
        last = self._shape
        yield
        sockets = {
            d: Listener(
                destination=d,
                port=port,
                vip=allocations.vips[d.name],
                callers=frozenset().union(*callers.get(port, ())),
                peers=peers if d in offered else frozenset(),
            )
            for d, port in allocations.ports.items()
            if d not in closed
        }
        sockets = _reused(last.sockets if last else {}, sockets)
        yield
        rulesets = _reused(last.rulesets if last else {}, _rulesets(s, inside, routes))
        yield
        return Skeleton(
            allocations=allocations,
            closed=closed,
            sockets=sockets,
            rulesets=rulesets,
            host_ruleset=HostRuleset(
                proxy_ports=s.settings.proxy_ports,
                dns_port=s.settings.dns_port,
                workloads=frozenset(a for g in inside for a in g.addresses) | s.settings.visitors.guests,
                published=frozenset((a, *port) for g in inside for a in g.addresses for port in g.published),
                peers=peers,
                machines=frozenset(m.address for m in others),
                dns_addresses=dns_addresses,
                subnets=subnets,
                listening=self._listening(allocations, closed),
                visitors=self._visitor_rules(s, visiting),
            ),
            dns_addresses=dns_addresses,
            zone=Zone(
                suffix=s.settings.suffix,
                names=allocations.vips,
                views=_views(inside, routes, visiting, allocations.vips.keys() if lacking else None),
                subnets=subnets,
                askers={a: g.members[0].declared.name for g in inside for a in g.addresses},
                visitors={a: party.option for party in visiting for a in party.addresses},
                vip_range=s.settings.vip_range,
            ),
            addresses={m.workload.id: g.address for g in inside if g.address is not None for m in g.members},
            shortage=lacking,
        )

    def _reach_all(
        self, s: Snapshot, members: tuple[MeshContainer, ...], remote: frozenset[Destination]
    ) -> Generator[None, None, dict[str, Reach]]:
        """Return each container's reach by its id; only those are computed anew whom a change concerns."""
        before = self._known
        after = catalogue(s.specs, (m.declared for m in members), remote)
        after = Catalogue(
            destinations=_reused(before.destinations, after.destinations),
            services=_reused(before.services, after.services),
        )
        changed = {
            name
            for name in before.destinations.keys() | after.destinations.keys()
            if before.destinations.get(name) is not after.destinations.get(name)
        }
        found = {}
        for number, member in enumerate(members):
            if not number % TURN:
                yield
            declared = member.declared
            service = declared.name.service
            former, known = self._reaches.get(member.workload.id, (None, Reach()))
            if (
                former is None
                or former.declared != declared
                or before.services.get(service) is not after.services.get(service)
            ):
                known = reach(after, service, declared.connect_to)
            elif concerned := known.names & changed:
                known = reach_after(known, before, after, concerned, service, declared.connect_to)
            found[member.workload.id] = (member, known)
        self._known, self._reaches = after, found
        return {container: known for container, (_, known) in found.items()}

    def _route_all(self, allocations: Allocations) -> frozenset[Destination]:
        """Bring the routes up to date; return the destinations of those that differ from before."""
        before = self._former_routes = self._routes
        if self._shape is not None and allocations is self._shape.allocations:
            return frozenset()
        after = {
            d: Route(vip=allocations.vips[d.name], port=d.port, protocol=d.protocol, proxy_port=port)
            for d, port in allocations.ports.items()
        }
        self._routes = after = _reused(before, after)
        return frozenset(d for d in before.keys() | after.keys() if before.get(d) is not after.get(d))

    def _listening(self, allocations: Allocations, closed: frozenset[Destination]) -> frozenset[tuple[Protocol, int]]:
        if self._shape is not None and allocations is self._shape.allocations and closed == self._shape.closed:
            return self._shape.host_ruleset.listening
        return frozenset((d.protocol, port) for d, port in allocations.ports.items() if d not in closed)

    def _visitor_rules(self, s: Snapshot, visiting: Iterable[VisitorGroup]) -> VisitorRules | None:
        routes = {p.option: _known(self._routes, p.reach.destinations) for p in visiting}
        if not routes:
            return None
        return VisitorRules(
            vip_range=s.settings.vip_range,
            host_routes=routes.get(HOST_OPTION, frozenset()),
            guest_routes=routes.get(GUEST_OPTION, frozenset()),
            guests=s.settings.visitors.guests,
        )

    def _routes_of(
        self, group: Group, reachable: Reach, moved: frozenset[Destination]
    ) -> tuple[Reach, frozenset[Route]]:
        former = self._group_routes.get(group.netns)
        if former is None:
            return reachable, _known(self._routes, reachable.destinations)
        known, routes = former
        if known == reachable and moved.isdisjoint(reachable.destinations):
            return former
        gone = (known.destinations - reachable.destinations) | (moved & known.destinations)
        come = (reachable.destinations - known.destinations) | (moved & reachable.destinations)
        kept = routes - _known(self._former_routes, gone)
        return reachable, kept | _known(self._routes, come)


def _may_call(machine: Machine) -> bool:
    """Whether its host is let in: it is in use, or it has only lost its Consul and says so itself."""
    return machine.healthy or machine.answers


def _known(routes: Mapping[Destination, Route], destinations: Iterable[Destination]) -> frozenset[Route]:
    """Return their routes; those without a port have none."""
    return frozenset(routes[d] for d in destinations if d in routes)


def _merged(reaches: Iterable[Reach]) -> Reach:
    """Return what containers that share a namespace may reach: the rules cannot tell them apart."""
    first, *others = reaches
    if not others:
        return first
    return Reach(
        first.destinations.union(*(r.destinations for r in others)), first.names.union(*(r.names for r in others))
    )


def _rulesets(
    s: Snapshot, inside: Iterable[Group], routes: Mapping[NetnsId, tuple[Reach, frozenset[Route]]]
) -> dict[NetnsId, WorkloadRuleset]:
    hosts = frozenset(a for a in s.host_addresses if not a.is_loopback)
    subnets = frozenset(_container_subnets(s))
    return {
        g.netns: WorkloadRuleset(
            netns=Netns(id=g.netns, path=g.path),
            proxy=g.proxy,
            dns_port=s.settings.dns_port,
            vip_range=s.settings.vip_range,
            proxy_ports=s.settings.proxy_ports,
            routes=routes[g.netns][1],
            gateways=g.gateways,
            hosts=hosts,
            subnets=subnets,
            published=g.published,
            internal=g.internal,
            address=g.address,
            door=s.settings.doors and g.address is not None,
        )
        for g in inside
    }


def _container_subnets(s: Snapshot) -> Iterator[IPv4Network | IPv6Network]:
    """Yield the subnets whose addresses are containers' only; that of a macvlan or ipvlan network is the LAN itself."""
    for network in s.networks:
        if network.driver not in {"macvlan", "ipvlan"}:
            yield from network.subnets


def _views(
    inside: Iterable[Group],
    routes: Mapping[NetnsId, tuple[Reach, frozenset[Route]]],
    visiting: Iterable[VisitorGroup],
    addressed: AbstractSet[Name] | None,
) -> dict[IPv4Address, frozenset[Name]]:
    """Return who sees which names, of those that are `addressed` (None: all)."""
    views: dict[IPv4Address, frozenset[Name]] = {a: party.reach.names for party in visiting for a in party.addresses}
    for g in inside:
        for address in g.addresses:
            names = routes[g.netns][0].names
            views[address] = views[address] | names if address in views else names
    return views if addressed is None else {asker: names & addressed for asker, names in views.items()}


_K = TypeVar("_K")


def at_once(work: Generator[None, None, _T]) -> _T:
    """Do all turns of a work and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: _T = done.value
            return result


def _reused(before: Mapping[_K, _T], after: Mapping[_K, _T]) -> dict[_K, _T]:
    """Return `after` with the former objects wherever they are equal."""
    return {
        key: former if (former := before.get(key)) == value and former is not None else value
        for key, value in after.items()
    }
