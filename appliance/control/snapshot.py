"""All facts at one moment, from those that know them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import structlog

from appliance.model.facts import Snapshot
from appliance.plan.admission import admitted, shut_out
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.control.deployer import Deployer
    from appliance.drivers.host.addresses import HostAddresses
    from appliance.drivers.host.bridges import HostBridges
    from appliance.drivers.registry import Registry
    from appliance.model.facts import BridgeMember, DockerNetwork, Settings, Workload
    from appliance.model.spec import Service

log = structlog.get_logger()


class Containers(Protocol):
    """What runs on this host, as far as it is known."""

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The labelled containers."""

    @property
    def networks(self) -> tuple[DockerNetwork, ...]:
        """Docker's networks."""

    @property
    def members(self) -> tuple[BridgeMember, ...]:
        """The containers on bridge networks, labelled or not."""


class FactSources:
    """The parts of the appliance that know facts, and the settings."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        containers: Containers,
        deployer: Deployer,
        host_addresses: HostAddresses,
        bridges: HostBridges,
    ) -> None:
        self.settings = settings
        self._host_addresses = host_addresses
        self._bridges = bridges
        self._registry = registry
        self._containers = containers
        self._deployer = deployer
        self._told: frozenset[str] = frozenset()
        """Ids of containers of which the log has told that a deployed service does not take them in."""

    def snapshot(self) -> Snapshot:
        """Return all facts as they are now, but those that the loop itself adds."""
        known = self._registry.facts
        return Snapshot(
            now=time.time(),
            settings=self.settings,
            specs=known.specs,
            tombstones=known.tombstones,
            workloads=self._admitted(known.specs),
            networks=self._containers.networks,
            host_addresses=self._host_addresses.now,
            members=self._containers.members,
            bridges=self._bridges.now,
            allocations=known.allocations,
            unusable_ports=known.own_ports,
            machines=known.machines,
            endpoints=known.endpoints,
            registry_ports=known.ports,
            going=self._deployer.going,
            busy=self._deployer.busy,
        )

    def _admitted(self, specs: Mapping[str, Service]) -> tuple[Workload, ...]:
        """Return the containers, and tell once of each that a deployed service does not take in."""
        out = frozenset(w.id for w in self._containers.workloads if shut_out(w, specs))
        if not out and not self._told:
            return self._containers.workloads
        found = admitted(self._containers.workloads, specs)
        for w in found:
            if w.id in out - self._told:
                log.warning(
                    "a labelled container is not in the mesh", container=plain(w.docker_name), problem=w.problem
                )
        self._told = out
        return found
