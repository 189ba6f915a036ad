"""What the admin API asks of a running appliance, answered by its parts (`api.protocol.Appliance`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from appliance.app import bridge
from appliance.dataplane.api import CONNECTIONS, DNS_STATS, SHARES, STATS
from appliance.plan.replicas.rollout import images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from appliance.app.parts import Parts
    from appliance.config.options import Config
    from appliance.control.supervisor import PartState
    from appliance.faults import Faults
    from appliance.model.facts import Snapshot, Workload
    from appliance.model.registry import Interests, RegistryFacts
    from appliance.model.rollout import Progress, ReplicaKey
    from appliance.model.spec import Service
    from appliance.model.state import HostState
    from appliance.model.stats import Connection, ListenerStats, ShareStats


class RunningAppliance:
    """A running appliance, for those that look at it or change what it should run."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def config(self) -> Config:
        """The configuration that it runs with."""
        return self._parts.config

    @property
    def started_at(self) -> float:
        """When it started, in seconds since the epoch."""
        return self._parts.started_at

    @property
    def faults(self) -> Faults:
        """The faults that last at the moment."""
        return self._parts.faults

    @property
    def parts(self) -> Mapping[str, PartState]:
        """How each part of the control plane fares, by its name."""
        return self._parts.supervisor.states

    @property
    def have(self) -> HostState:
        """The network state that this host has."""
        return self._parts.reconciler.have

    @property
    def registry_facts(self) -> RegistryFacts:
        """What the registry knows."""
        return self._parts.registry.facts

    @property
    def under_way(self) -> Mapping[ReplicaKey, Progress]:
        """What the deployer is doing or has failed to do."""
        return self._parts.deployer.progress

    def snapshot(self) -> Snapshot:
        """Return all facts as they are now."""
        return self._parts.facts.snapshot()

    async def look(self, interests: Interests) -> Snapshot:
        """Return the same facts, with what other machines serve of these services even if it does not matter here."""
        endpoints = await self._parts.registry.look(interests)
        return replace(self.snapshot(), endpoints=endpoints)

    async def stats(self) -> tuple[ListenerStats, ...]:
        """Return the counters of all open listeners."""
        return await bridge.answer(self._parts.plane, STATS)

    async def connections(self) -> tuple[Connection, ...]:
        """Return all open pairs and sessions."""
        return await bridge.answer(self._parts.plane, CONNECTIONS)

    async def shares(self) -> tuple[ShareStats, ...]:
        """Return the callers that hold, or held, more than their share."""
        return await bridge.answer(self._parts.plane, SHARES)

    async def counters(self) -> Mapping[str, float]:
        """Return further counters by name. They only grow, except those that end in `_now`."""
        parts = self._parts
        dns = await bridge.answer(parts.plane, DNS_STATS)
        return {
            "passes": parts.reconciler.passes,
            "steps": parts.reconciler.steps,
            "faults": parts.faults.total,
            "rulesets_pushed": parts.nft.pushed,
            "rulesets_failed": parts.nft.failed,
            "containers_before_first_instruction": parts.inventory.punctuality.in_time,
            "containers_after_first_instruction": parts.inventory.punctuality.late,
            "workers_restarted": parts.plane.restarted,
            **{f"dns_{name}": count for name, count in dns.items()},
            **{f"docker_{name}": count for name, count in parts.inventory.counts.items()},
            **{f"containers_{name}": count for name, count in parts.deployer.counts.items()},
        }

    async def rules(self, workload: Workload) -> str | None:
        """Return our table in the workload's namespace as nft lists it. Raises RetryError."""
        return None if workload.netns is None else await self._parts.nft.list_table(workload.netns.path)

    async def pull(self, services: Iterable[Service], tell: Callable[[str, str], None]) -> None:
        """Pull what these services need on this machine and is absent. Raises RetryError."""
        await self._parts.deployer.pull(images(self.snapshot(), services), tell)

    async def deploy(self, services: Iterable[Service]) -> None:
        """Store specs; the loop does the rest. Raises RetryError or HostError when they cannot be stored."""
        for service in services:
            await self._parts.registry.put_spec(service)
        self._parts.ring(urgent=True)

    async def remove(self, name: str) -> bool:
        """Put a tombstone in place of a service; the loop does the rest. Return False when there is none."""
        removed = await self._parts.registry.remove_spec(name)
        self._parts.ring(urgent=True)
        return removed
