"""The appliance: everything wired together, started in order and stopped in reverse.

One nursery tree holds all control-plane tasks. Each part says that it is ready through `nursery.start()`; the whole is
ready when the admin socket accepts.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from appliance import logs
from appliance.api import server as admin
from appliance.app import bridge, worker
from appliance.app.shutdown import wait_drained
from appliance.app.systemd import Notifier
from appliance.check import host
from appliance.control.deployer import PEERS_SETTLE, SETTLE, Deployer
from appliance.control.doors import Doors
from appliance.control.effects import HostEffects
from appliance.control.hostaccess import HostAccess
from appliance.control.reconcile import FULL_PASS, Reconciler
from appliance.dataplane import api as face
from appliance.dataplane.inprocess import InProcess
from appliance.dataplane.workers.pool import WorkerPool
from appliance.drivers.docker.client import Docker
from appliance.drivers.docker.inventory import Inventory
from appliance.drivers.docker.none import NoContainers
from appliance.drivers.host.resolvers import HostResolvers
from appliance.drivers.netns import addresses, identity
from appliance.drivers.nft import features
from appliance.drivers.nft.client import Nft
from appliance.drivers.nft.drift import RulesetWatch
from appliance.drivers.nft.helper import NftHelper
from appliance.drivers.registry import open_registry
from appliance.errors import HostError, MeshboxError, RetryError
from appliance.faults import Faults
from appliance.lock import only_one
from appliance.model.facts import Snapshot
from appliance.model.finding import Level
from appliance.model.names import Protocol
from appliance.plan.interests import interests
from appliance.plan.policy import declaration
from appliance.plan.rollout import claims, images, rollout
from appliance.render.ruleset import REMOVE, change_host

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping
    from ipaddress import IPv4Address

    from appliance.config.options import Config
    from appliance.drivers.nft.features import NftFeatures
    from appliance.drivers.registry import Registry
    from appliance.model.facts import Workload
    from appliance.model.network import NetnsId
    from appliance.model.registry import Interests, RegistryFacts
    from appliance.model.rollout import Progress, ReplicaKey
    from appliance.model.spec import Service
    from appliance.model.state import HostState
    from appliance.model.stats import Connection, ListenerStats

log = structlog.get_logger()


def run(config: Config) -> int:
    """Run the appliance until SIGTERM or SIGINT; return the exit code. Faults at start are one line and exit 1."""
    logs.configure(level=config.log_level, form=config.log_format)
    # Shells and container engines give few of the open files that are allowed: 1024 are 500 connections.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        with only_one(Path(config.run_dir)):
            return bridge.run(partial(_main, config))
    except (MeshboxError, BaseExceptionGroup) as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if not isinstance(first, MeshboxError):
            raise
        sys.stderr.write(f"meshbox: {first}\n")
        return 1


async def _main(config: Config, loop: asyncio.AbstractEventLoop, stopping: trio.Event) -> int:
    findings = await host.examine(config)
    for finding in findings:
        if finding.level is Level.FAILED:
            raise HostError(finding.line)
        if finding.level is Level.WARNING:
            log.warning(finding.words, remedy=finding.remedy)
    async with Docker(config.docker_socket) as docker:
        appliance = Appliance(config, loop, docker)
        return await appliance.run(stopping)


def _plane(config: Config, loop: asyncio.AbstractEventLoop) -> face.DataPlane:
    """Return the data plane, here or in workers; nothing runs yet."""
    own = [(str(address), config.dns_port) for address in config.dns_listen]
    upstreams = HostResolvers(fixed=config.dns_upstreams, own=own)
    if not config.workers:
        return InProcess(loop, dns_upstreams=upstreams, dns_port=config.dns_port)
    command = worker.command(level=config.log_level, form=config.log_format)
    return WorkerPool(loop, number=config.workers, command=command, dns_upstreams=upstreams, dns_port=config.dns_port)


class Appliance:
    """The parts of a running appliance, and what the admin API asks of it."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop, docker: Docker) -> None:
        """Make all parts; nothing is started or touched yet."""
        self.config = config
        self.started_at = time.time()
        self.faults = Faults()
        self._docker = docker
        self.gateway = config.is_gateway
        self._settings = config.settings(gateway=self.gateway)
        self._host_access = HostAccess(config, self._settings.visitors, self.faults, services=self._services)
        self._host_addresses: frozenset[IPv4Address] = frozenset()
        self._unneeded_network = trio.Event()
        self.plane = _plane(config, loop)
        self.registry: Registry = open_registry(config, bell=self.ring, gateway=self.gateway)
        self.inventory: Inventory | NoContainers = (
            NoContainers()
            if self.gateway
            else Inventory(
                docker,
                netns_dir=config.netns_dir,
                bell=self.ring,
                tcp_ports=self._tcp_ports,
                fresh_netns=self._fresh_netns,
                faults=self.faults,
            )
        )
        self._nft_helper = NftHelper()
        self._nft = Nft(self._nft_helper)
        self._watch = RulesetWatch(on_drift=self._drifted)
        self._doors = Doors(self.plane, self.faults)
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
        )
        self.reconciler = Reconciler(
            snapshot=self.snapshot,
            effects=HostEffects(
                plane=self.plane,
                doors=self._doors,
                nft=self._nft,
                nft_helper=self._nft_helper,
                watch=self._watch,
                registry=self.registry,
            ),
            faults=self.faults,
            after_pass=self._after_pass,
        )

    async def run(self, stopping: trio.Event) -> int:
        """Start everything in order, serve until `stopping`, then drain and stop in reverse."""
        try:
            async with trio.open_nursery() as nursery:
                self.plane.start()
                await nursery.start(self.registry.run)
                await nursery.start(self._nft_helper.run)
                self._note(await features.probe(self._nft_helper.dry_run))
                await nursery.start(self._watch.run)
                await nursery.start(self._doors.run)
                await nursery.start(self._follow_host_addresses)
                await nursery.start(self.inventory.run)
                self.registry.watch(interests(self.snapshot()))
                await nursery.start(self.deployer.run)
                nursery.start_soon(self._tidy)
                await nursery.start(self.reconciler.run)
                await nursery.start(self._host_access.run)
                await nursery.start(admin.serve, self, Path(self.config.run_dir) / "admin.sock")
                gc.collect()
                gc.freeze()
                notifier = Notifier()
                nursery.start_soon(notifier.watchdog)
                notifier.ready()
                log.info("ready", node=self.config.node, workloads=len(self.inventory.workloads))
                await stopping.wait()
                notifier.stopping(self.config.drain)
                await self._host_access.stop()
                await self.registry.withdraw()
                await self._drain()
                await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            await self._host_access.stop()
            self.plane.close()
        log.info("stopped; containers and their rules stay as they are")
        return 0

    def ring(self, *, urgent: bool = False) -> None:
        """Say that facts have changed."""
        self.inventory.probe()
        self.reconciler.ring(urgent=urgent)

    @property
    def have(self) -> HostState:
        """The network state that this host has."""
        return self.reconciler.have

    @property
    def registry_facts(self) -> RegistryFacts:
        """What the registry knows."""
        return self.registry.facts

    @property
    def under_way(self) -> Mapping[ReplicaKey, Progress]:
        """What the deployer is doing or has failed to do."""
        return self.deployer.progress

    async def stats(self) -> tuple[ListenerStats, ...]:
        """Return the counters of all open listeners."""
        return await bridge.answer(self.plane, face.STATS)

    async def connections(self) -> tuple[Connection, ...]:
        """Return all open pairs and sessions."""
        return await bridge.answer(self.plane, face.CONNECTIONS)

    async def counters(self) -> Mapping[str, float]:
        """Return counters by name; they only grow."""
        return {
            "passes": self.reconciler.passes,
            "steps": self.reconciler.steps,
            "faults": self.faults.total,
            "rulesets_pushed": self._nft.pushed,
            "rulesets_failed": self._nft.failed,
            "containers_before_first_instruction": self.inventory.seen_before_start,
            "workers_restarted": self.plane.restarted,
            **{f"dns_{name}": count for name, count in (await bridge.answer(self.plane, face.DNS_STATS)).items()},
            **{f"docker_{name}": count for name, count in self.inventory.counts.items()},
            **{f"containers_{name}": count for name, count in self.deployer.counts.items()},
        }

    async def rules(self, workload: Workload) -> str | None:
        """Return our table in the workload's namespace as nft lists it. Raises RetryError."""
        return None if workload.netns is None else await self._nft.list_table(workload.netns.path)

    def snapshot(self) -> Snapshot:
        """Return all facts as they are now."""
        known = self.registry.facts
        return Snapshot(
            now=time.time(),
            settings=self._settings,
            specs=known.specs,
            tombstones=known.tombstones,
            workloads=self.inventory.workloads,
            networks=self.inventory.networks,
            host_addresses=self._host_addresses,
            allocations=known.allocations,
            unusable_ports=known.own_ports,
            machines=known.machines,
            endpoints=known.endpoints,
            going=self.deployer.going,
        )

    async def look(self, interests: Interests) -> Snapshot:
        """Return the same, with what other machines serve of these services, whether it matters here or not."""
        endpoints = await self.registry.look(interests)
        return replace(self.snapshot(), endpoints=endpoints)

    async def pull(self, services: Iterable[Service], tell: Callable[[str, str], None]) -> None:
        """Pull what these services need on this machine and is absent. Raises RetryError."""
        await self.deployer.pull(images(self.snapshot(), services), tell)

    async def deploy(self, services: Iterable[Service]) -> None:
        """Store specs; the loop does the rest. Raises RetryError or HostError when they cannot be stored."""
        for service in services:
            await self.registry.put_spec(service)
        self.ring(urgent=True)

    async def remove(self, name: str) -> bool:
        """Put a tombstone in place of a service; the loop does the rest. Return False when there is none."""
        removed = await self.registry.remove_spec(name)
        self.ring(urgent=True)
        return removed

    def _note(self, nft: NftFeatures) -> None:
        """Do without doors where the kernel does not know their rules; the check before the start has said so."""
        if features.DOOR_RULES not in nft.features:
            self._settings = replace(self._settings, doors=False)

    async def _drain(self) -> None:
        self.plane.stop()
        await wait_drained(partial(bridge.answer, self.plane, face.LEFT), self.config.drain)

    async def _leave(self) -> None:
        """With no container left in the mesh, leave the host as it was; otherwise the rules about them stay."""
        rules = self.have.host_ruleset
        if self.inventory.workloads and (rules is None or rules.visitors is None):
            return
        netns_id = identity.identify(identity.HOST)
        if netns_id is not None:
            self._watch.remove(netns_id)
        try:
            left = REMOVE
            if self.inventory.workloads and rules is not None:
                left = change_host(rules, replace(rules, visitors=None))
            await self._nft_helper.command(left)
        except MeshboxError as error:
            log.warning("the host's table inet meshbox stays; run meshbox cleanup", cause=str(error))

    async def _pairs_to(self, address: IPv4Address) -> int:
        return await bridge.answer(self.plane, face.pairs_to(address))

    async def _after_pass(self, facts: Snapshot) -> float:
        claimed, due = claims(facts, self.have.registrations)
        self.registry.claim(claimed)
        await trio.lowlevel.checkpoint()  # traffic has its turn
        self.registry.watch(interests(facts))
        self.deployer.submit(rollout(facts, busy=self.deployer.busy))
        self._host_access.changed()
        needed = facts.specs or any(w.revision is not None for w in facts.workloads)
        if not needed and any(n.name == self.config.docker_network for n in facts.networks):
            self._unneeded_network.set()
        return due

    def _services(self) -> frozenset[str]:
        return frozenset(destination.name.service for destination in self.have.listeners)

    async def _tidy(self) -> None:
        """Remove our Docker network each time after the last container that needed it."""
        while True:
            await self._unneeded_network.wait()
            self._unneeded_network = trio.Event()
            try:
                await self.deployer.tidy()
            except RetryError as error:
                self.faults.report("tidy", "cannot remove the Docker network; will try again", error)
            else:
                self.faults.over("tidy")

    def _tcp_ports(self, workload: Workload) -> frozenset[int]:
        ports = declaration(workload, self.registry.facts.specs).ports
        return frozenset(p.container for p in ports if p.protocol is Protocol.TCP)

    def _fresh_netns(self, netns: NetnsId) -> None:
        self._watch.remove(netns)
        self.reconciler.forget_ruleset(netns)

    def _drifted(self, netns: NetnsId) -> None:
        if netns == identity.identify(identity.HOST):
            log.warning("somebody changed the host's table inet meshbox; putting it back")
            self.reconciler.forget_host_ruleset()
        else:
            log.warning("somebody changed a container's table inet meshbox; putting it back", netns=str(netns))
            self.reconciler.forget_ruleset(netns)

    async def _follow_host_addresses(self, *, task_status: trio.TaskStatus[None]) -> None:
        while True:
            try:
                found = frozenset(await addresses.read(identity.HOST))
            except (OSError, RetryError) as error:
                self.faults.report("host addresses", "cannot read this host's addresses; the former ones stay", error)
            else:
                self.faults.over("host addresses")
                if found != self._host_addresses:
                    self._host_addresses = found
                    self.reconciler.ring()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(FULL_PASS)
