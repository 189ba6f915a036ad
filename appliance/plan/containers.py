"""The containers of the mesh on this host, and the network namespaces in which they run."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import TYPE_CHECKING

from appliance.model.facts import RunState
from appliance.plan.policy import declaration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from ipaddress import IPv4Network, IPv6Address, IPv6Network

    from appliance.model.facts import Attachment, DockerNetwork, Snapshot, Workload
    from appliance.model.names import Destination, Port, Protocol
    from appliance.model.network import NetnsId, WorkloadRuleset
    from appliance.model.spec import Service
    from appliance.plan.policy import Declaration


_ENDED = frozenset({RunState.EXITED, RunState.DEAD, RunState.RESTARTING, RunState.REMOVING})


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshContainer:
    """A container of the mesh, with what it declares and the namespace it is in (None while it has none)."""

    workload: Workload
    declared: Declaration
    offers: tuple[tuple[Destination, Port], ...]
    netns: NetnsId | None

    @property
    def ended(self) -> bool:
        """Whether it has ended and meshbox does not start it again: it needs nothing on this host."""
        return self.workload.revision is None and self.workload.state in _ENDED

    @property
    def identity(self) -> tuple[object, ...]:
        """All that matters to rules, names and listeners; health and readiness do not."""
        w = self.workload
        return (w.id, self.declared, self.netns and w.netns, w.attachments, w.published, self.ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One network namespace and the containers that share it (`docker run --network container:…`)."""

    netns: NetnsId
    path: str
    """The file through which it is entered."""
    containers: tuple[MeshContainer, ...]
    networks: frozenset[str]
    addresses: frozenset[IPv4Address]
    proxy: IPv4Address
    """The host's address on the network of `address`, or on its first one that has one."""
    address: IPv4Address | None
    """Where this host reaches it: the same for as long as it has that, whichever networks it joins and leaves."""
    gateways: frozenset[IPv4Address | IPv6Address]
    published: frozenset[tuple[Protocol, int]]
    internal: bool
    """All its networks are internal ones."""


class MeshContainers:
    """Reads containers from snapshots. One that did not change is the same object as before."""

    def __init__(self) -> None:
        self._former: dict[str, MeshContainer] = {}

    def read(self, s: Snapshot) -> tuple[MeshContainer, ...]:
        """Return this host's containers of the mesh, sorted by id. Those with a problem are left out."""
        found = {}
        for w in sorted((w for w in s.workloads if w.problem is None), key=lambda w: w.id):
            container = self._former.get(w.id)
            if container is None or container.workload is not w or w.revision is not None:
                fresh = _container(w, s.specs)
                if fresh != container:
                    container = fresh
            found[w.id] = container
        self._former = found
        return tuple(found.values())


def _container(w: Workload, specs: Mapping[str, Service]) -> MeshContainer:
    declared = declaration(w, specs)
    gone = w.netns is None or w.state in (RunState.EXITED, RunState.DEAD)
    return MeshContainer(
        workload=w,
        declared=declared,
        offers=tuple(zip(declared.destinations, declared.ports, strict=True)),
        netns=None if gone or w.netns is None else w.netns.id,
    )


def kept_addresses(
    workloads: Iterable[Workload], rulesets: Mapping[NetnsId, WorkloadRuleset]
) -> dict[NetnsId, IPv4Address]:
    """Return `Snapshot.kept` after a plan with these rules.

    Docker's order of networks is that of their names, so a network that is joined may come first.
    """
    kept = {}
    for w in workloads:
        if len(w.attachments) > 1 and w.netns is not None and w.netns.id in rulesets:
            address = rulesets[w.netns.id].address
            if address in w.addresses[1:]:
                kept[w.netns.id] = address
    return kept


def grouped(
    containers: Iterable[MeshContainer],
    networks: Mapping[str, DockerNetwork],
    kept: Mapping[NetnsId, IPv4Address] = MappingProxyType({}),
) -> tuple[Group, ...]:
    """Return the namespaces that can be served, sorted: this host has an address on at least one of their networks.

    `kept` is `Snapshot.kept`.
    """
    sharing: dict[NetnsId, list[MeshContainer]] = {}
    for container in containers:
        if container.netns is not None:
            sharing.setdefault(container.netns, []).append(container)
    found = (_group(netns, tuple(sharers), networks, kept.get(netns)) for netns, sharers in sorted(sharing.items()))
    return tuple(group for group in found if group is not None)


def _group(
    netns: NetnsId,
    containers: tuple[MeshContainer, ...],
    networks: Mapping[str, DockerNetwork],
    kept: IPv4Address | None,
) -> Group | None:
    attachments = [a for c in containers for a in c.workload.attachments]
    attachments.sort(key=lambda a: kept is None or a.address != kept)  # the others stay in their order
    proxies = [gateway for a in attachments if (gateway := _gateway(a, networks)) is not None]
    if not proxies:
        return None
    addresses = [a.address for a in attachments if a.address is not None]
    gateways: set[IPv4Address | IPv6Address] = set(proxies)
    gateways.update(a.gateway6 for a in attachments if a.gateway6 is not None)
    for a in attachments:
        if a.network in networks:
            gateways.update(networks[a.network].gateways)
    return Group(
        netns=netns,
        path=next(c.workload.netns.path for c in containers if c.workload.netns is not None),
        containers=containers,
        networks=frozenset(a.network for a in attachments),
        addresses=frozenset(addresses),
        proxy=proxies[0],
        address=addresses[0] if addresses else None,
        gateways=frozenset(gateways),
        published=frozenset().union(*(c.workload.published for c in containers)),
        internal=all(a.network in networks and networks[a.network].internal for a in attachments),
    )


def container_subnets(networks: Iterable[DockerNetwork]) -> Iterator[IPv4Network | IPv6Network]:
    """Yield the subnets that hold containers only; that of a macvlan or ipvlan network is the LAN itself."""
    for network in networks:
        if network.driver not in {"macvlan", "ipvlan"}:
            yield from network.subnets


def _gateway(attachment: Attachment, networks: Mapping[str, DockerNetwork]) -> IPv4Address | None:
    """Return this host's address on the network; an internal network names none to its containers."""
    if attachment.gateway is not None:
        return attachment.gateway
    network = networks.get(attachment.network)
    return next((g for g in network.gateways if isinstance(g, IPv4Address)), None) if network is not None else None
