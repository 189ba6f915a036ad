"""All facts at one moment, from those that know them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from appliance.model.facts import Snapshot

if TYPE_CHECKING:
    from appliance.control.deployer import Deployer
    from appliance.drivers.host.addresses import HostAddresses
    from appliance.drivers.host.bridges import HostBridges
    from appliance.drivers.registry import Registry
    from appliance.model.facts import BridgeMember, DockerNetwork, Settings, Workload


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

    def snapshot(self) -> Snapshot:
        """Return all facts as they are now, but those that the loop itself adds."""
        known = self._registry.facts
        return Snapshot(
            now=time.time(),
            settings=self.settings,
            specs=known.specs,
            tombstones=known.tombstones,
            workloads=self._containers.workloads,
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
