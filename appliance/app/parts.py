"""The parts of an appliance, made and wired together. Nothing runs or is touched yet."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from appliance.app import bridge, worker
from appliance.control.confirm import Confirmer
from appliance.control.deployer import PEERS_SETTLE, SETTLE, Deployer
from appliance.control.doors import Doors
from appliance.control.effects import HostEffects
from appliance.control.followers import PlanFollowers
from appliance.control.hostaccess import HostAccess
from appliance.control.reconcile import FULL_PASS, Reconciler
from appliance.control.snapshot import FactSources
from appliance.control.supervisor import Supervisor
from appliance.control.tidy import NetworkTidier
from appliance.dataplane.api import pairs_to
from appliance.dataplane.inprocess import InProcess
from appliance.dataplane.workers.pool import WorkerPool
from appliance.drivers.docker.inventory import Inventory
from appliance.drivers.docker.none import NoContainers
from appliance.drivers.host.addresses import HostAddresses
from appliance.drivers.host.bridges import HostBridges
from appliance.drivers.host.resolvers import HostResolvers
from appliance.drivers.netns import identity
from appliance.drivers.nft.client import Nft
from appliance.drivers.nft.drift import RulesetWatch
from appliance.drivers.nft.helper import NftHelper
from appliance.drivers.nft.lease import Lease
from appliance.drivers.registry import open_registry
from appliance.faults import Faults
from appliance.plan.containers import MeshContainers
from appliance.plan.interests import interests
from appliance.plan.probes import probes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from ipaddress import IPv4Address

    from appliance.config.options import Config
    from appliance.dataplane.api import DataPlane
    from appliance.drivers.docker.client import Docker
    from appliance.drivers.nft.features import NftFeatures
    from appliance.drivers.registry import Registry
    from appliance.model.network import NetnsId

log = structlog.get_logger()


def make_plane(
    config: Config, loop: asyncio.AbstractEventLoop, refused: Callable[[IPv4Address], None] | None = None
) -> DataPlane:
    """Return the data plane, in this process or in workers. `refused` is told of containers that fail."""
    own = [(str(address), config.dns_port) for address in config.dns_listen]
    upstreams = HostResolvers(fixed=config.dns_upstreams, own=own)
    if not config.workers:
        return InProcess(loop, dns_upstreams=upstreams, dns_port=config.dns_port, refused=refused)
    command = worker.command(level=config.log_level, form=config.log_format)
    return WorkerPool(
        loop,
        number=config.workers,
        command=command,
        dns_upstreams=upstreams,
        dns_port=config.dns_port,
        refused=refused,
    )


class Parts:
    """What an appliance is made of, and the wires between parts that do not know each other."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop, docker: Docker) -> None:
        """Make all parts. Raises HostError when a file that the configuration names cannot be used."""
        gateway = config.is_gateway
        settings = config.settings(gateway=gateway)
        self.config = config
        self.loop = loop
        self.started_at = time.time()
        self.faults = Faults()
        self.supervisor = Supervisor(self.faults)
        self.plane = make_plane(config, loop, self._refused)
        self.registry: Registry = open_registry(config, bell=self.ring, gateway=gateway)
        self.inventory: Inventory | NoContainers = (
            NoContainers()
            if gateway
            else Inventory(
                docker,
                netns_dir=config.netns_dir,
                image_labels=config.image_labels,
                bell=self.ring,
                fresh_netns=self._fresh_netns,
                faults=self.faults,
            )
        )
        self.host_addresses = HostAddresses(bell=self.ring, faults=self.faults, every=FULL_PASS)
        self.bridges = HostBridges(bell=self.ring, faults=self.faults, every=FULL_PASS)
        self.nft_helper = NftHelper()
        self.nft = Nft(self.nft_helper)
        self.drift = RulesetWatch(on_drift=self._drifted, faults=self.faults)
        self.doors = Doors(self.plane)
        self.host_access = HostAccess(config, settings.visitors, self.faults, services=self._services)
        self.deployer = Deployer(
            docker,
            network=config.docker_network,
            bell=self.ring,
            pairs_to=self._pairs_to,
            drain=config.drain,
            settle=PEERS_SETTLE if config.registry == "consul" else SETTLE,
            subnet=config.docker_subnet,
            node=config.node,
            faults=self.faults,
            allows=config.allows,
        )
        self.tidier = NetworkTidier(self.deployer, self.faults)
        self.facts = FactSources(
            settings,
            registry=self.registry,
            containers=self.inventory,
            deployer=self.deployer,
            host_addresses=self.host_addresses,
            bridges=self.bridges,
        )
        self.reconciler = Reconciler(
            snapshot=self.facts.snapshot,
            carry_out=HostEffects(
                plane=self.plane,
                doors=self.doors,
                nft=self.nft,
                nft_helper=self.nft_helper,
                watch=self.drift,
                registry=self.registry,
                rules_in_place=self.inventory.punctuality.rules_in_place,
            ).carry_out,
            faults=self.faults,
            followers=PlanFollowers(
                containers=self.inventory,
                registry=self.registry,
                deployer=self.deployer,
                host_access=self.host_access,
                unneeded=self.tidier.unneeded,
                faults=self.faults,
            ),
        )
        self.confirmer = Confirmer(
            wanted=lambda: not self.facts.settings.port_claims,
            confirm=self.plane.confirm,
            catch_up=self.inventory.catch_up,
            settle=self.reconciler.settle,
            faults=self.faults,
        )
        self.lease = Lease(fresh=self.reconciler.holds_claims, faults=self.faults)

    def ring(self, *, urgent: bool = False) -> None:
        """Say that facts have changed."""
        self.reconciler.ring(urgent=urgent)

    def look_ahead(self) -> None:
        """Follow the facts that there are before the first pass, which then knows what other machines and ports answer.

        Without the ports that have a program, its listeners would open without backends after a restart.
        """
        found = self.facts.snapshot()
        self.registry.watch(interests(found))
        self.inventory.probe(probes(MeshContainers().read(found)))

    def limit_to(self, nft: NftFeatures) -> None:
        """Do without doors or port claims where the kernel knows no such rules; the check before the start said so."""
        if not nft.doors:
            self.facts.settings = replace(self.facts.settings, doors=False)
        if not nft.bridges:
            self.facts.settings = replace(self.facts.settings, port_claims=False)

    def _refused(self, address: IPv4Address) -> None:
        self.inventory.refused(address)

    async def _pairs_to(self, address: IPv4Address) -> int:
        return await bridge.answer(self.plane, pairs_to(address))

    def _services(self) -> frozenset[str]:
        return frozenset(destination.name.service for destination in self.reconciler.have.listeners)

    def _fresh_netns(self, netns: NetnsId) -> None:
        """Forget the rules of a namespace that had this number before: the kernel uses numbers again."""
        self.drift.remove(netns)
        self.reconciler.forget_ruleset(netns)

    def _drifted(self, netns: NetnsId) -> None:
        if netns == identity.identify(identity.HOST):
            log.warning("somebody changed a table meshbox of the host's; putting it back")
            self.reconciler.forget_host_ruleset()
        else:
            log.warning("somebody changed a container's table inet meshbox; putting it back", netns=str(netns))
            self.reconciler.forget_ruleset(netns)
