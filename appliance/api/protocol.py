"""What the admin API asks of a running appliance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from appliance.config.options import Config
    from appliance.faults import Faults
    from appliance.model.facts import Snapshot, Workload
    from appliance.model.registry import Interests, RegistryFacts
    from appliance.model.rollout import Progress, ReplicaKey
    from appliance.model.spec import Service
    from appliance.model.state import HostState
    from appliance.model.stats import Connection, ListenerStats


class Appliance(Protocol):
    """A running appliance, as the admin API sees it."""

    @property
    def config(self) -> Config:
        """The configuration that it runs with."""

    @property
    def started_at(self) -> float:
        """When it started, in seconds since the epoch."""

    @property
    def faults(self) -> Faults:
        """The faults that last at the moment."""

    @property
    def have(self) -> HostState:
        """The network state that this host has."""

    @property
    def registry_facts(self) -> RegistryFacts:
        """What the registry knows."""

    @property
    def under_way(self) -> Mapping[ReplicaKey, Progress]:
        """What the deployer is doing or has failed to do."""

    def snapshot(self) -> Snapshot:
        """Return all facts as they are now."""

    async def look(self, interests: Interests) -> Snapshot:
        """Return the same facts, with what other machines serve of these services even if it does not matter here."""

    async def stats(self) -> tuple[ListenerStats, ...]:
        """Return the counters of all listeners."""

    async def connections(self) -> tuple[Connection, ...]:
        """Return all open pairs and sessions."""

    async def counters(self) -> Mapping[str, float]:
        """Return further counters by name (`passes`, …). They only grow, except those that end in `_now`."""

    async def pull(self, services: Iterable[Service], tell: Callable[[str, str], None]) -> None:
        """Pull the images that these need here; `tell` gets an image and its state. Raises RetryError."""

    async def deploy(self, services: Iterable[Service]) -> None:
        """Store specs. Raises RetryError or HostError."""

    async def remove(self, name: str) -> bool:
        """Put a tombstone in place of a service; False when there is none."""

    async def rules(self, workload: Workload) -> str | None:
        """Return the table in the workload's namespace as nft lists it. Raises RetryError."""
