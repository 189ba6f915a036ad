"""What a registry tells the appliance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.model.facts import Allocations, RegistryPorts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.model.facts import Endpoint, Machine
    from appliance.model.spec import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Interests:
    """The services of which this machine wants to know what other machines serve."""

    services: frozenset[str] = frozenset()
    everything: bool = False
    """Whether all other services of the mesh matter as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryFacts:
    """What a registry knows at one moment. It is replaced as a whole and never changed."""

    specs: Mapping[str, Service] = field(default_factory=dict)
    tombstones: Mapping[str, float] = field(default_factory=dict)
    """When each removed service was removed, in Unix time."""
    allocations: Allocations = field(default_factory=Allocations)
    """Virtual IPs and ports of this machine. Other machines have their own."""
    own_ports: frozenset[int] = frozenset()
    """Ports of the proxy's range that the registry itself uses on this host."""
    machines: tuple[Machine, ...] = ()
    """All machines, this one included. Empty: there is only this one."""
    endpoints: tuple[Endpoint, ...] = ()
    ports: RegistryPorts = field(default_factory=RegistryPorts)
    """Of the registry itself."""
    held_since: float | None = None
    """Since when the registry has been silent and these facts are held, in Unix time; None: they are fresh."""
    held_why: str = ""
    open_queries: int = 0
    """Blocking queries that are waiting now."""
    problems: tuple[str, ...] = ()
    """What was found and not used, in words: a spec of a newer version, two machines with one address."""
