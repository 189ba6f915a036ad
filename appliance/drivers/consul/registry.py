"""Consul as the registry: what all machines share, and what stays known whatever happens to Consul.

Facts come from disk first, then from Consul. A list shrinks only on evidence, and a failed read changes nothing.

    transport, api     HTTP under Trio; the calls           codec                  what stands in Consul
    watch              blocking queries, bounded            staleness, loss        held since when; removed, or lost?
    machines           all machines of the mesh             deregistered, liveness, presence   whether they live
    endpoints, specs   what they serve; what is deployed    announce               this machine's registrations
    cache              the copy on disk                     rejoin                 agents find each other again
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.consul.announce import Announcer
from appliance.drivers.consul.api import ConsulApi
from appliance.drivers.consul.cache import Cache, CachedFacts
from appliance.drivers.consul.codec import check_meta
from appliance.drivers.consul.endpoints import Endpoints
from appliance.drivers.consul.loss import EPOCH, GRACE, LossDetector
from appliance.drivers.consul.machines import Machines
from appliance.drivers.consul.rejoin import rejoin
from appliance.drivers.consul.specs import FOLDER, Specs
from appliance.drivers.consul.staleness import START, Staleness
from appliance.drivers.consul.watch import Queries
from appliance.drivers.local.store import LocalStore
from appliance.drivers.netns import identity
from appliance.errors import RetryError, cause
from appliance.model.registry import RegistryFacts

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address
    from pathlib import Path

    from appliance.config.options import Consul as ConsulSettings
    from appliance.model.facts import Allocations, Endpoint
    from appliance.model.network import Registration
    from appliance.model.registry import Interests
    from appliance.model.spec import Service

log = structlog.get_logger()

FIRST_ANSWER = 5.0
"""Seconds that a start waits for Consul before it continues with what is on disk."""
SAVE = 0.5
"""Seconds for which changes are gathered before they are written to disk."""


class ConsulRegistry:
    """A `Registry` that is shared by all machines."""

    def __init__(
        self,
        settings: ConsulSettings,
        *,
        node: str,
        meta: tuple[tuple[str, str], ...] = (),
        address: IPv4Address | None = None,
        gateway: bool = False,
        host: str = "",
        proxy_ports: tuple[int, int],
        state_dir: Path,
        bell: Callable[[], None],
        clock: Callable[[], float] = time.time,
        grace: float = GRACE,
    ) -> None:
        """Touch nothing yet. Raises HostError when a file of the settings cannot be used, or `meta` is too long.

        `address` is where other machines reach this one; without it, the address of the Consul agent. `host` tells
        this host from one whose appliance has the same node name; by default it is found out. One of `proxy_ports`
        becomes the presence port. `clock` gives seconds since the epoch of Unix; `grace` is in seconds.
        """
        check_meta(meta)
        self._bell = bell
        self._cache = Cache(state_dir)
        self._store = LocalStore(state_dir, clock=clock)
        self._api = ConsulApi(settings)
        self._staleness = Staleness(clock, self._publish)
        self._announcer = Announcer(
            self._api,
            self._staleness,
            node=node,
            meta=meta,
            address=address,
            changed=self._publish,
            host=host or identity.host(),
            gateway=gateway,
        )
        self._loss = LossDetector(
            self._api, self._staleness, node, lost=self._put_back, other=self._start_afresh, grace=grace
        )
        self._queries = Queries(self._staleness, lambda sure: self._loss.went_back(sure=sure))
        self._specs = Specs(self._api, clock, self._publish)
        self._machines = Machines(
            self._api, self._staleness, self._loss, node=node, missed=self._announcer.again, changed=self._publish
        )
        self._endpoints = Endpoints(self._api, self._staleness, self._loss, self._queries, changed=self._publish)
        self._proxy_ports = proxy_ports
        self._keys_answered = trio.Event()
        self._unsaved = trio.Event()
        self._facts = RegistryFacts()

    @property
    def facts(self) -> RegistryFacts:
        """What is known now."""
        return replace(self._facts, open_queries=self._queries.open)

    # -- Registry

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow Consul until cancelled. Started once it has answered, or with what is on disk after a while."""
        await self._store.load()
        presence_port = await self._restore()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._endpoints.run)
                nursery.start_soon(self._announcer.run, presence_port)
                nursery.start_soon(self._machines.run, self._queries)
                nursery.start_soon(self._queries.follow, "specs", self._fetch_keys, self._take_keys)
                nursery.start_soon(self._specs.resend)
                nursery.start_soon(rejoin, self._api, self._staleness)
                nursery.start_soon(self._loss.settle_losses, self._settle)
                nursery.start_soon(self._save_now_and_then)
                nursery.start_soon(self._note_first_answers)
                nursery.start_soon(self._confirm)
                with trio.move_on_after(FIRST_ANSWER) as patience:
                    await self._answers()
                if patience.cancelled_caught:
                    log.warning("starting without Consul, with what is on disk", cause=self._staleness.why)
                task_status.started()
        finally:
            with trio.move_on_after(2) as last:
                last.shield = True
                await self._save()
                await self._api.aclose()

    async def put_spec(self, service: Service) -> None:
        """Deploy. When Consul is away, it takes effect here and is sent later."""
        await self._specs.put(service.name, service)

    async def remove_spec(self, name: str) -> bool:
        """Remove; False when there is no such service. When Consul is away, it takes effect here and is sent later."""
        return await self._specs.remove(name)

    async def keep_allocations(self, allocations: Allocations) -> None:
        """Store virtual IPs and proxy ports on disk; they are this machine's own."""
        await self._store.keep_allocations(allocations)
        self._facts = replace(self._facts, allocations=allocations)

    async def register(self, registration: Registration) -> None:
        """Announce a destination. Never fails or waits: Consul is told as soon as it answers."""
        await self._announcer.register(registration)

    async def deregister(self, registration: Registration) -> None:
        """Withdraw an announcement. Never fails, and waits only for a Consul that answers."""
        await self._announcer.deregister(registration.destination)

    def claim(self, claims: frozenset[str]) -> None:
        """Announce with this machine the replicas that no other may run any more. Never fails or waits."""
        self._announcer.claim(claims)

    async def withdraw(self) -> None:
        """Withdraw all announcements."""
        await self._announcer.withdraw()

    def watch(self, interests: Interests) -> None:
        """Replace the services whose endpoints are of interest."""
        self._endpoints.watch(interests)

    async def look(self, interests: Interests) -> tuple[Endpoint, ...]:
        """Return what other machines serve of these services; those that are not watched are asked for now."""
        services = interests.services
        if interests.everything:
            services |= await self._endpoints.names()
        found = [e for e in self._facts.endpoints if e.destination.name.service in services]
        found += await self._endpoints.ask(services)
        return tuple(e for e in found if self._machines.is_serving(e.node))

    # -- what Consul answers

    async def _answers(self) -> None:
        await self._machines.answered.wait()
        await self._keys_answered.wait()

    async def _note_first_answers(self) -> None:
        await self._answers()
        self._staleness.over(START)

    async def _confirm(self) -> None:
        await self._announcer.announced.wait()
        await self._loss.confirm_own()

    async def _fetch_keys(self, index: int) -> tuple[int, dict[str, tuple[bytes, int]]]:
        return await self._api.values("", index)

    async def _take_keys(self, values: dict[str, tuple[bytes, int]]) -> None:
        """Take in all our keys: the epoch and the specs."""
        await self._loss.compare(values.get(self._api.key(EPOCH)))
        folder = self._api.key(FOLDER)
        await self._specs.took({key: value for key, value in values.items() if key.startswith(folder)})
        self._keys_answered.set()
        self._publish()

    def _put_back(self) -> None:
        """Have everything put back that Consul has lost."""
        self._announcer.again()
        self._specs.again()

    def _start_afresh(self) -> None:
        """Drop what is known: this is another Consul."""
        self._specs.disown()
        self._machines.forget()
        self._endpoints.forget()

    async def _settle(self) -> bool:
        """Drop what was not put back after a loss. Return False while Consul cannot be asked."""
        try:
            await self._machines.reread()
        except RetryError:
            return False
        if self._loss.suspended:
            return False
        self._endpoints.settle()
        return True

    # -- facts, in memory and on disk

    def _publish(self) -> None:
        """Make facts of what is known. Ring the bell if those have changed on which plans depend."""
        before = self._facts
        self._facts = RegistryFacts(
            specs=self._specs.deployed,
            tombstones=self._specs.tombstones,
            allocations=self._store.allocations,
            own_ports=self._machines.own_ports,
            machines=self._machines.judge(),
            endpoints=tuple(e for e in self._endpoints if self._machines.is_serving(e.node)),
            held_since=self._staleness.since,
            held_why=self._staleness.why,
            problems=(
                *self._machines.complaints,
                *self._endpoints.complaints,
                *(text for _, text in sorted(self._announcer.problems.items())),
                *self._specs.problems,
            ),
        )
        for problem in set(self._facts.problems) - set(before.problems):
            log.warning("something in Consul needs attention", problem=problem)
        after = replace(self._facts, held_since=before.held_since, held_why=before.held_why, problems=before.problems)
        if after != before:
            self._unsaved.set()
            self._bell()

    async def _restore(self) -> int | None:
        """Take over what is on disk, and open the presence port. Return its number."""
        known = await self._cache.read()
        self._loss.remember(known.epoch)
        self._machines.restore(known.machines)
        self._endpoints.restore(known.endpoints)
        self._specs.restore(self._store.specs, self._store.tombstones, known.changed)
        taken = frozenset(self._store.allocations.ports.values())
        presence_port = self._machines.open_presence(self._proxy_ports, taken)
        self._staleness.failed(START, "nothing heard from Consul yet")
        self._publish()
        return presence_port

    async def _save_now_and_then(self) -> None:
        while True:
            await self._unsaved.wait()
            await trio.sleep(SAVE)
            self._unsaved = trio.Event()
            await self._save()

    async def _save(self) -> None:
        """Write what is known to disk. A failure is logged, and the next change tries again."""
        known = CachedFacts(
            epoch=self._loss.epoch,
            changed=self._specs.times,
            machines=self._facts.machines,
            endpoints=self._facts.endpoints,
        )
        try:
            await self._store.replace_specs(self._facts.specs, self._facts.tombstones)
            await self._cache.write(known)
        except Exception as error:  # noqa: BLE001 — what Consul said is in memory, and must not end with the disk
            log.warning("cannot write to disk what Consul said; will try again at the next change", cause=cause(error))
