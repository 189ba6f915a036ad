"""Which container may reach what, from the declarations of specs, containers and other machines.

A container reaches the containers of its own service and what its `connect_to` names; nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.model.names import Destination, Name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from appliance.model.facts import Workload
    from appliance.model.names import Allowance, Port
    from appliance.model.spec import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What one container says about itself: the ports it offers and what it connects to."""

    name: Name
    ports: tuple[Port, ...]
    connect_to: tuple[Allowance, ...]

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """What it offers to others."""
        return tuple(Destination(name=self.name, port=p.mesh, protocol=p.protocol) for p in self.ports)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every declared name with its destinations. A name may have none."""

    destinations: Mapping[Name, frozenset[Destination]] = field(default_factory=dict)
    services: Mapping[str, frozenset[Name]] = field(default_factory=dict)
    """The names of each service."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What one container may reach. `names` includes those of which nothing exists yet."""

    destinations: frozenset[Destination] = frozenset()
    names: frozenset[Name] = frozenset()


def declaration(workload: Workload, specs: Mapping[str, Service]) -> Declaration:
    """Return the declaration of a container: the deployed spec if meshbox created it, else its labels."""
    if workload.revision is not None:
        service = specs.get(workload.name.service)
        container = service.container(workload.name.container) if service is not None else None
        if container is not None:
            return Declaration(name=workload.name, ports=container.ports, connect_to=container.connect_to)
    return Declaration(name=workload.name, ports=workload.ports, connect_to=workload.connect_to)


def catalogue(
    specs: Mapping[str, Service], declarations: Iterable[Declaration], remote: Iterable[Destination]
) -> Catalogue:
    """Gather all declarations: of deployed specs, of containers here, and of what other machines serve."""
    found: dict[Name, set[Destination]] = {}
    for service in specs.values():
        for c in service.containers:
            named = Declaration(name=Name(service=service.name, container=c.name), ports=c.ports, connect_to=())
            found.setdefault(named.name, set()).update(named.destinations)
    for declared in declarations:
        found.setdefault(declared.name, set()).update(declared.destinations)
    for destination in remote:
        found.setdefault(destination.name, set()).add(destination)
    services: dict[str, set[Name]] = {}
    for name in found:
        services.setdefault(name.service, set()).add(name)
    return Catalogue(
        destinations={name: frozenset(destinations) for name, destinations in found.items()},
        services={service: frozenset(names) for service, names in services.items()},
    )


def reach(known: Catalogue, service: str, connect_to: Iterable[Allowance]) -> Reach:
    """Return what a container of `service` with these allowances may reach."""
    names = set(known.services.get(service, ()))
    destinations = {d for name in names for d in known.destinations[name]}
    for allowance in connect_to:
        names.add(allowance.name)
        destinations.update(d for d in known.destinations.get(allowance.name, ()) if allowance.covers(d))
    return Reach(frozenset(destinations), frozenset(names))


def may_reach(service: str, connect_to: Iterable[Allowance], destination: Destination) -> bool:
    """Whether a container of `service` with these allowances may reach the destination, declared or not."""
    return service == destination.name.service or any(a.covers(destination) for a in connect_to)
