"""Consul as the registry: what all machines share, held through whatever happens to it (DESIGN §6).

    consultransport  HTTP under Trio          consulwatch     blocking queries, bounded
    consulapi        the calls that are made  consulannounce  this machine's registrations and heartbeat
    consulcodec      what stands in Consul    consulevidence  removed, or only missing?
    consulfile       the copy on disk         consulspecs     deployed specs and tombstones
    consuldeparted   machines that vanished   consulliveness  who is not healthy, but alive

Facts come from disk first, then from Consul. A list shrinks only on evidence, and a failed read changes nothing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.consul import cache as consulfile
from appliance.drivers.consul.announce import Announcer
from appliance.drivers.consul.api import ConsulApi
from appliance.drivers.consul.codec import (
    MESHBOX,
    StoredSpec,
    check_meta,
    one_per_node,
    parse_endpoints,
    parse_machines,
)
from appliance.drivers.consul.departed import Deregistered
from appliance.drivers.consul.liveness import Liveness
from appliance.drivers.consul.loss import AWAY, EPOCH, GRACE, LOOK, LossDetector
from appliance.drivers.consul.rejoin import rejoin
from appliance.drivers.consul.specs import FOLDER, Specs
from appliance.drivers.consul.watch import START, Interests, Queries, Staleness
from appliance.drivers.local import statefile
from appliance.drivers.local.store import LocalStore
from appliance.drivers.netns import identity
from appliance.errors import RetryError
from appliance.model.registry import RegistryFacts
from appliance.plan.visitors import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address
    from pathlib import Path
    from typing import Any

    from appliance.config.options import Consul as ConsulSettings
    from appliance.model.facts import Allocations, Endpoint, Machine
    from appliance.model.names import Destination
    from appliance.model.network import Registration
    from appliance.model.spec import Service

log = structlog.get_logger()

MACHINES = "machines"
"""Stands for the query for all machines."""
OWN = "own machine"
"""Stands for the look whether Consul shows us at all."""
APPEARS = (0.1, 0.2, 0.5)
"""Seconds between looks while it is no wonder that it does not yet."""
FIRST_ANSWER = 5.0
"""Seconds that a start waits for Consul before it goes on with what is on disk."""
SAVE = 0.5
"""Seconds that changes are gathered before they are written to disk."""


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
        this host from one whose appliance has the same node name, and is found out where it is not given. One of
        `proxy_ports` is taken, where this machine says that it is alive.
        """
        check_meta(meta)
        self._node = node
        self._bell = bell
        self._file = state_dir / consulfile.NAME
        self._store = LocalStore(state_dir, clock=clock)
        self._api = ConsulApi(settings)
        self._stale = Staleness(clock, self._publish)
        self._queries = Queries(self._stale, self._went_back)
        self._announcer = Announcer(
            self._api,
            self._stale,
            node=node,
            meta=meta,
            address=address,
            changed=self._publish,
            host=host or identity.host(),
            gateway=gateway,
        )
        self._loss = LossDetector(self._api, self._stale, node, lost=self._lost, other=self._other, grace=grace)
        self._specs = Specs(self._api, clock, self._publish)
        self._interests = Interests(
            self._queries, fetch=self._api.health, fetch_catalogue=self._api.catalogue, took=self._took_service
        )
        self._machines: dict[str, Machine] = {}
        self._departed = Deregistered(self._publish)
        self._liveness = Liveness(node, held=lambda: self._stale.since is not None, changed=self._publish)
        self._proxy_ports = proxy_ports
        self._endpoints: dict[str, dict[tuple[str, Destination], Endpoint]] = {}
        self._answered: dict[str, dict[tuple[str, Destination], Endpoint]] = {}
        """What Consul itself said last; differs from `_endpoints` while something is held."""
        self._complaints: dict[str, tuple[str, ...]] = {}
        self._first = {MACHINES: trio.Event(), "specs": trio.Event()}
        self._losses = trio.Event()
        self._interest: frozenset[str] = frozenset()
        self._every: frozenset[str] | None = None
        """Services of the catalogue, while all are of interest. It only grows: what is gone has no endpoints."""
        self._nursery: trio.Nursery | None = None
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
        await self._load()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._interests.run)
                nursery.start_soon(self._announcer.run)
                nursery.start_soon(self._follow_machines)
                nursery.start_soon(self._queries.follow, "specs", self._fetch_specs, self._took_specs)
                nursery.start_soon(self._specs.resend)
                nursery.start_soon(rejoin, self._api, self._stale)
                nursery.start_soon(self._get_over_losses)
                nursery.start_soon(self._departed.forget)
                nursery.start_soon(self._liveness.run)
                nursery.start_soon(self._save_now_and_then)
                nursery.start_soon(self._note_first_answers)
                nursery.start_soon(self._confirm)
                with trio.move_on_after(FIRST_ANSWER) as patience:
                    await self._answers()
                if patience.cancelled_caught:
                    log.warning("starting without Consul, on what is on disk", cause=self._stale.why or "no answer yet")
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
        stored = self._specs.known.get(name)
        if stored is None or stored.service is None:
            return False
        await self._specs.put(name, None)
        return True

    async def keep_allocations(self, allocations: Allocations) -> None:
        """Store virtual IPs and proxy ports on disk; they are this machine's own."""
        await self._store.keep_allocations(allocations)
        self._facts = replace(self._facts, allocations=allocations)

    async def register(self, registration: Registration) -> None:
        """Announce a destination. Never fails or waits: Consul is told as soon as it takes it."""
        await self._announcer.register(registration)

    async def deregister(self, registration: Registration) -> None:
        """Withdraw an announcement. Never fails, as `register`, and waits for a sound Consul only."""
        await self._announcer.deregister(registration.destination)

    def claim(self, claims: frozenset[str]) -> None:
        """Announce with this machine the replicas that no other may run any more. Consul is told when it can be."""
        self._announcer.claim(claims)

    async def withdraw(self) -> None:
        """Withdraw all announcements."""
        await self._announcer.withdraw()

    def watch(self, services: frozenset[str]) -> None:
        """Replace the services whose endpoints are of interest; EVERYTHING stands for all."""
        self._interest = services
        if EVERYTHING in services:
            if self._every is None and self._nursery is not None:
                self._every = frozenset(self._endpoints)
                self._nursery.start_soon(self._queries.follow, "all services", self._api.services, self._took_names)
            services = services - {EVERYTHING} | (self._every or frozenset())
        for service in self._endpoints.keys() - services:
            del self._endpoints[service]
            self._answered.pop(service, None)
            self._complaints.pop(f"service {service}", None)
        self._interests.watch(services)
        self._publish()

    async def look(self, services: frozenset[str]) -> tuple[Endpoint, ...]:
        """Return what other machines serve of these services; those that are not watched are asked for now."""
        if EVERYTHING in services:
            services = services - {EVERYTHING} | await self._names()
        found = [e for e in self._facts.endpoints if e.destination.name.service in services]
        if self._stale.since is None:
            for service in sorted(services - self._answered.keys()):
                try:
                    _, entries = await self._api.health(service)
                except RetryError as error:
                    log.debug("cannot look at a service", service=service, cause=str(error))
                    break
                found += parse_endpoints(entries)[0]
        return tuple(e for e in found if self._serves(e.node))

    async def _names(self) -> frozenset[str]:
        try:
            return (await self._api.services())[1] - {MESHBOX, "consul"} if self._stale.since is None else frozenset()
        except RetryError as error:
            log.debug("cannot ask for the services that there are", cause=str(error))
            return frozenset()

    async def _took_names(self, names: frozenset[str]) -> None:
        self._every = (self._every or frozenset()) | (names - {MESHBOX, "consul"})
        self.watch(self._interest)

    # -- what Consul answers

    async def _answers(self) -> None:
        for event in self._first.values():
            await event.wait()

    async def _note_first_answers(self) -> None:
        await self._answers()
        self._stale.over(START)

    async def _confirm(self) -> None:
        """Hold what is known until Consul shows this machine: a token that may not read others sees an empty mesh."""
        await self._announcer.announced.wait()
        for pause in chain(APPEARS, repeat(LOOK)):
            await trio.sleep(pause)
            try:
                self._loss.check_own((await self._api.health(MESHBOX))[1])
            except RetryError as error:
                if pause == LOOK:
                    self._stale.failed(OWN, error)
            else:
                self._stale.over(OWN)
                return

    async def _follow_machines(self) -> None:
        await self._queries.follow(MACHINES, lambda index: self._api.health(MESHBOX, index), self._took_machines)

    async def _took_machines(self, entries: list[dict[str, Any]]) -> None:
        if not self._first[MACHINES].is_set():
            await self._loss.look()
        known, found = self._machines, self._parsed_machines(entries)
        if known.keys() - found.keys() and self._node not in found:
            self._announcer.again()
        self._machines = {**known, **found}
        self._machines = await self._loss.merge(known, found, self._read_machines)
        self._departed.note(known, self._machines)
        self._first[MACHINES].set()
        self._publish()

    async def _read_machines(self) -> dict[str, Machine]:
        return self._parsed_machines((await self._api.health(MESHBOX))[1])

    def _parsed_machines(self, entries: list[dict[str, Any]]) -> dict[str, Machine]:
        seen, complaints = parse_machines(entries)
        found, doubts = one_per_node(seen)
        self._complaints[MACHINES] = (*complaints, *doubts)
        silent = {s.machine for s in seen if s.silent}
        if self._stale.lasted(MACHINES) >= AWAY:
            self._loss.was_away()
            self._losses.set()
        if not self._loss.suspended:
            return found
        known = self._machines
        return {n: replace(m, healthy=known[n].healthy) if m in silent and n in known else m for n, m in found.items()}

    async def _took_service(self, service: str, entries: list[dict[str, Any]]) -> None:
        known, found = self._endpoints.get(service, {}), self._parsed_service(service, entries)
        self._endpoints[service] = {**known, **found}
        again = partial(self._read_service, service)
        self._endpoints[service] = await self._loss.merge(known, found, again)
        self._publish()

    async def _read_service(self, service: str) -> dict[tuple[str, Destination], Endpoint]:
        return self._parsed_service(service, (await self._api.health(service))[1])

    def _parsed_service(self, service: str, entries: list[dict[str, Any]]) -> dict[tuple[str, Destination], Endpoint]:
        endpoints, self._complaints[f"service {service}"] = parse_endpoints(entries)
        ordered = sorted(endpoints, key=lambda e: (e.destination, e.node))
        self._answered[service] = found = {(e.node, e.destination): e for e in ordered}
        return found

    async def _fetch_specs(self, index: int) -> tuple[int, dict[str, tuple[bytes, int]]]:
        return await self._api.values("", index)

    async def _took_specs(self, values: dict[str, tuple[bytes, int]]) -> None:
        epoch = self._api.key(EPOCH)
        if epoch not in values or values[epoch][0] != self._loss.epoch.encode():
            await self._loss.look()
        folder = self._api.key(FOLDER)
        await self._specs.took({key: value for key, value in values.items() if key.startswith(folder)})
        self._first["specs"].set()
        self._publish()

    def _lost(self) -> None:
        self._announcer.again()
        self._specs.again()
        self._losses.set()

    def _went_back(self, sure: bool) -> None:  # noqa: FBT001 — a callback
        self._loss.went_back(sure=sure)
        self._losses.set()

    def _other(self) -> None:
        self._specs.disown()
        self._machines.clear()
        self._departed.clear()
        self._endpoints.clear()

    async def _get_over_losses(self) -> None:
        """When what was lost had its time to come back, drop what did not."""
        while True:
            await self._losses.wait()
            await self._loss.get_over()
            await trio.sleep(LOOK)
            if self._stale.since is None and await self._settle():
                self._losses = trio.Event()

    async def _settle(self) -> bool:
        try:
            await self._took_machines((await self._api.health(MESHBOX))[1])
        except RetryError:
            return False
        if self._loss.suspended:
            return False
        self._endpoints = {service: dict(found) for service, found in self._answered.items()}
        self._publish()
        return True

    # -- facts, in memory and on disk

    def _serves(self, node: str) -> bool:
        """Whether what a node announces is used: it is another machine, and healthy."""
        machine = self._machines.get(node)
        return machine is not None and machine.healthy and node != self._node

    def _publish(self) -> None:
        """Make facts of what is known; ring the bell if they differ in what plans depend on."""
        before = self._facts
        known = self._specs.known.items()
        machines = (*self._machines.values(), *self._departed.machines)
        problems = tuple(text for _, texts in sorted(self._complaints.items()) for text in texts)
        self._facts = RegistryFacts(
            specs={name: stored.service for name, stored in known if stored.service is not None},
            tombstones={name: stored.changed for name, stored in known if stored.service is None},
            allocations=self._store.allocations,
            own_ports=self._liveness.ports,
            machines=self._liveness.judge(sorted(machines, key=lambda m: m.node)),
            endpoints=tuple(
                endpoint
                for _, found in sorted(self._endpoints.items())
                for endpoint in found.values()
                if self._serves(endpoint.node)
            ),
            held_since=self._stale.since,
            held_why=self._stale.why,
            problems=(
                *problems,
                *(text for _, text in sorted(self._announcer.problems.items())),
                *sorted(self._specs.foreign.values()),
                *_waiting(self._specs.unsent),
            ),
        )
        for problem in set(self._facts.problems) - set(before.problems):
            log.warning("found in Consul", problem=problem)
        after = replace(self._facts, held_since=before.held_since, held_why=before.held_why, problems=before.problems)
        if after != before:
            self._unsaved.set()
            self._bell()

    async def _load(self) -> None:
        try:
            known = consulfile.load(await trio.to_thread.run_sync(self._file.read_bytes))
        except OSError:
            known = consulfile.Known()
        self._loss.epoch = known.epoch
        self._machines = {m.node: m for m in known.machines}
        taken = frozenset(self._store.allocations.ports.values())
        self._announcer.presence_port = self._liveness.open(self._proxy_ports, taken, self._machines.get(self._node))
        for e in known.endpoints:
            self._endpoints.setdefault(e.destination.name.service, {})[e.node, e.destination] = e
        for name, service in self._store.specs.items():
            self._specs.known[name] = StoredSpec(service=service, changed=known.changed.get(name, 0.0))
        for name, when in self._store.tombstones.items():
            self._specs.known[name] = StoredSpec(service=None, changed=known.changed.get(name, when))
        self._specs.disowned = self._specs.known.keys() - known.changed.keys()
        self._stale.failed(START, "nothing heard from Consul yet")
        self._publish()

    async def _save_now_and_then(self) -> None:
        while True:
            await self._unsaved.wait()
            await trio.sleep(SAVE)
            self._unsaved = trio.Event()
            await self._save()

    async def _save(self) -> None:
        """Write what is known to disk. A disk that refuses is reported and tried again at the next change."""
        known = consulfile.Known(
            epoch=self._loss.epoch,
            changed={n: stored.changed for n, stored in self._specs.known.items() if n not in self._specs.disowned},
            machines=self._facts.machines,
            endpoints=self._facts.endpoints,
        )
        try:
            await self._store.replace_specs(self._facts.specs, self._facts.tombstones)
            await trio.to_thread.run_sync(statefile.write, self._file, consulfile.dump(known))
        except (OSError, RetryError) as error:
            log.warning("cannot keep what Consul said on disk; will try again", cause=str(error))


def _waiting(unsent: Iterable[str]) -> tuple[str, ...]:
    return tuple(f'the last change of service "{name}" waits for Consul' for name in sorted(unsent))
