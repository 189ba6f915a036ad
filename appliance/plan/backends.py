"""Where the connections of each listener may go, and what this machine announces."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from appliance.model.facts import BoundPort, RunState
from appliance.model.names import Protocol
from appliance.model.network import Backend, Registration
from appliance.plan.containers import container_subnets
from appliance.plan.readiness import is_ready, may_open, serves, way

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from appliance.model.facts import Snapshot
    from appliance.model.names import Destination
    from appliance.plan.containers import MeshContainer

_NOWHERE = IPv4Network("0.0.0.0/8")
_BROADCAST = IPv4Address("255.255.255.255")


def local_backends(
    containers: Iterable[MeshContainer], addresses: Mapping[str, IPv4Address], retiring: frozenset[str]
) -> dict[Destination, list[Backend]]:
    """Return the containers of this host that can take connections; `addresses` by Docker id.

    A container in `retiring` gets no new connections except from peers that have not heard of it yet. It gets no
    datagrams: a lost one is sent again, and a session must not stay where it ends soon. A paused one, and one whose
    port may open when a client comes, are spares: they are there for what nothing else serves.
    """
    found: dict[Destination, list[Backend]] = {}
    for container in containers:
        workload = container.workload
        address = addresses.get(workload.id)
        if address is None:
            continue
        going = workload.id in retiring
        for destination, port in container.offers:
            served = serves(workload, port)
            on_demand = not served and not going and may_open(workload, port, container.declared.ports)
            if not (served or on_demand) or (going and port.protocol is Protocol.UDP):
                continue
            bound = way(workload, port) or BoundPort(port.protocol, port.container)
            # Dialled from inside its namespace, a connection would bypass the rules that it may have there, and miss a
            # socket that is bound to an interface.
            netns = None if workload.own_rules or bound.by_link else container.netns
            backend = Backend(
                address=bound.address or address,
                port=port.container,
                local=True,
                label=workload.docker_name,
                retiring=going,
                netns=netns,
                on_demand=on_demand,
                paused=workload.state is RunState.PAUSED,
            )
            found.setdefault(destination, []).append(backend)
    return found


def own_address(s: Snapshot) -> IPv4Address | None:
    """Return the address by which other machines know this one; None if this host does not have it (behind NAT)."""
    return next(
        (m.address for m in s.machines if m.node == s.settings.node and m.address in s.host_addresses),
        None,
    )


def refused_addresses(s: Snapshot) -> dict[IPv4Address, str]:
    """Return the addresses of other machines' endpoints that no other machine can have, each with the reason in words.

    What is dialled there would be something of this host, which lets its own proxy in where it lets nobody else.
    """
    found = {}
    subnets = [subnet for subnet in container_subnets(s.networks) if isinstance(subnet, IPv4Network)]
    for address in {e.address for e in s.endpoints if e.node != s.settings.node}:
        if address.is_loopback or address.is_link_local or address.is_multicast or address in _NOWHERE:
            found[address] = "which is no address of a machine"
        elif address == _BROADCAST:
            found[address] = "which is the address of all machines"
        elif address in s.settings.vip_range:
            found[address] = f"which lies in vip_range {s.settings.vip_range}"
        elif address in s.host_addresses:
            found[address] = "which is this machine's own"
        elif any(address in subnet for subnet in subnets):
            found[address] = "which lies in a Docker network of this machine"
    return found


def remote_backends(s: Snapshot) -> dict[Destination, list[Backend]]:
    """Return the proxies of other machines that serve something, to be dialled from this machine's own address.

    Those at an address that no other machine can have are left out (`refused_addresses`). One of weight 0 has only
    spares itself, and is one.
    """
    node, source, refused = s.settings.node, own_address(s), refused_addresses(s)
    found: dict[Destination, list[Backend]] = {}
    for e in s.endpoints:
        if e.node != node and not (refused and e.address in refused):
            backend = Backend(
                address=e.address,
                port=e.port,
                local=False,
                weight=e.weight or 1,
                label=e.node,
                source=source,
                on_demand=not e.weight,
            )
            found.setdefault(e.destination, []).append(backend)
    return found


def choose(
    local: Mapping[Destination, list[Backend]], remote: Mapping[Destination, list[Backend]], *, prefer_local: bool
) -> dict[Destination, tuple[Backend, ...]]:
    """Return each destination's backends, sorted, each address and port once.

    With `prefer_local`, other machines serve only what no container here does.
    """
    chosen = {d: _sorted(backends) for d, backends in local.items()}
    for destination, backends in remote.items():
        here = local.get(destination, [])
        if not (prefer_local and any(not (b.retiring or b.spare) for b in here)):
            chosen[destination] = _sorted([*here, *backends])
    return chosen


def registrations(
    local: Mapping[Destination, list[Backend]],
    ports: Mapping[Destination, int],
    containers: Iterable[MeshContainer] = (),
    now: float = 0.0,
) -> dict[Destination, Registration]:
    """Return what this machine announces: what it serves itself, weighted by its ready replicas.

    What only spares serve is announced with weight 0: other machines come here where there is nothing else. A port that
    opens on demand counts among the revisions of a container that is ready without it, so that no deploy waits for it.
    """
    made = {c.workload.docker_name: c for c in containers if c.workload.revision is not None}
    found = {}
    for d, backends in local.items():
        staying = _sorted([b for b in backends if not b.retiring])
        if staying and d in ports:
            counted = Counter(
                str(c.workload.revision)
                for b in staying
                if (c := made.get(b.label)) is not None
                if not b.spare or is_ready(c.workload, c.declared.ports, now)
            )
            found[d] = Registration(
                destination=d,
                proxy_port=ports[d],
                weight=sum(not b.spare for b in staying),
                revisions=tuple(sorted(counted.items())) if counted else (),
            )
    return found


def _sorted(backends: list[Backend]) -> tuple[Backend, ...]:
    if len(backends) == 1:
        return (backends[0],)
    once = {(b.address, b.port): b for b in sorted(backends, reverse=True)}
    return tuple(sorted(once.values()))
