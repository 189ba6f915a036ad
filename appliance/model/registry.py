"""What a registry tells the appliance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.model.facts import Allocations

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
    """Removed services and when (seconds since the epoch)."""
    allocations: Allocations = field(default_factory=Allocations)
    """This machine's own; never shared."""
    own_ports: frozenset[int] = frozenset()
    """Ports of the proxy's range that the registry itself uses on this host."""
    machines: tuple[Machine, ...] = ()
    """Empty: this machine alone."""
    endpoints: tuple[Endpoint, ...] = ()
    held_since: float | None = None
    """Since when (seconds since the epoch) these facts are held without hearing from the registry; None: fresh."""
    held_why: str = ""
    open_queries: int = 0
    """Blocking queries that are waiting now."""
    problems: tuple[str, ...] = ()
    """What was found and not used, in words: a spec of a newer version, two machines with one address."""
