"""Names: their addresses, the views that askers have of them, where DNS answers, and where Docker's answers first.

Docker's own DNS (127.0.0.11) has the first word on networks that somebody made; on the default bridge there is none. It
knows a container by its name and its aliases, each also with the network's name behind it (libnetwork, ResolveName).
What it answers is the container's own address, where the rules of the mesh refuse connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from appliance.errors import InputError
from appliance.model.names import Name
from appliance.model.network import Zone
from appliance.plan.containers import container_subnets
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from appliance.model.facts import Allocations, BridgeMember, DockerName, Snapshot, Workload
    from appliance.model.network import NetnsId
    from appliance.model.sources import CallerSources
    from appliance.model.state import HostState
    from appliance.plan.containers import Group
    from appliance.plan.rulesets import GroupRoutes
    from appliance.plan.visitors import VisitorGroup

DEFAULT_BRIDGE = "bridge"
"""Docker's own network, whose containers do not ask 127.0.0.11."""


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


@dataclass(frozen=True, slots=True, order=True)
class Hidden:
    """A name of the mesh, and what has it in Docker's DNS on a network."""

    name: Name
    known: DockerName

    @property
    def words(self) -> str:
        """What happens, for whoever sees the name."""
        network, text, container = map(plain, self.known)
        what = "name" if text == container.lower() else f"alias {text}" if text != str(self.name) else "alias"
        return (
            f"Docker's own DNS (127.0.0.11) answers {self.name} on network {network}, where DNS has no door:"
            f" it is the {what} of container {container}{self._with_network}"
        )

    @property
    def remedy(self) -> str:
        """What to do."""
        network, text, container = map(plain, self.known)
        if self._with_network:
            return f"give network {network} another name, or what is called {text} there"
        if text == container.lower():
            return f"give container {container} another name in Docker"
        return f"take the alias {text} from container {container} on network {network}"

    @property
    def _with_network(self) -> str:
        return "" if self.known.text == str(self.name) else ", with the network's name behind it"


def answered_by_docker(members: Iterable[BridgeMember]) -> dict[str, dict[Name, DockerName]]:
    """Return which names of two labels Docker's DNS answers, by network."""
    found: dict[str, dict[Name, DockerName]] = {}
    for member in members:
        for known in sorted(member.called):
            if known.network == DEFAULT_BRIDGE:
                continue
            for text in (known.text, f"{known.text}.{known.network.lower()}"):
                name = _name(text)
                if name is not None:
                    found.setdefault(known.network, {}).setdefault(name, known)
    return found


def hidden(client: Workload, have: HostState, answered: Mapping[str, Mapping[Name, DockerName]]) -> tuple[Hidden, ...]:
    """Return those of the names in a container's view which Docker's DNS answers for it, in order.

    A container with a door has none: what it asks is answered before Docker sees it.
    """
    if have.zone is None or (client.netns is not None and client.netns.id in have.doors):
        return ()
    views = have.zone.views
    seen = frozenset[Name]().union(*(views.get(address, ()) for address in client.addresses))
    found = {
        name: known
        for attachment in client.attachments
        for name, known in answered.get(attachment.network, {}).items()
        if name in seen
    }
    return tuple(Hidden(name, known) for name, known in sorted(found.items()))


def _name(text: str) -> Name | None:
    try:
        return Name.parse(text)
    except InputError:
        return None
