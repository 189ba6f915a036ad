"""Keeps this machine and what it serves registered with its Consul agent.

The machine and its heartbeat come first and wait for nothing else: without them Consul takes all of it for dead. All
other registrations are remembered here. Each has its own task while it differs from what Consul has, so that one that
is refused or slow holds up no other, and no caller waits for Consul.

What the agent has is compared with what is wanted at the start (a crash leaves registrations behind), after heartbeats
that failed, and every minute. Only ids that begin with `meshbox:<node>` are ever touched, and none of them while the
appliance of another host keeps that name alive at this agent.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.consul.api import RETRY
from appliance.drivers.consul.codec import (
    TTL,
    destination_id,
    destination_service,
    is_namesake,
    machine_id,
    machine_service,
    namesake,
    same_service,
)
from appliance.drivers.consul.transport import CALL_TIMEOUT
from appliance.errors import HostError, RetryError, cause
from appliance.heartbeat import UNWATCHED, Part
from appliance.model.facts import Machine
from appliance.model.privileges import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.drivers.consul.api import ConsulApi
    from appliance.drivers.consul.staleness import Staleness
    from appliance.heartbeat import Heartbeat
    from appliance.model.names import Destination
    from appliance.model.network import Registration
    from appliance.model.privileges import Privileges

log = structlog.get_logger()

HEARTBEAT = TTL / 4
"""Seconds between heartbeats."""
PATIENT_BEAT = TTL / 3
"""Seconds that one may take. One that never ends must be noticed, and another made, before the others are without."""
COMPARE = 60.0
"""Seconds between comparisons when all is well."""
SETTLE = 5.0
"""Seconds after the start for which leftovers of a former run stay. Most of them will be wanted again by then."""
PATIENCE = 2.0
"""Seconds that all withdrawals together may wait for Consul. Those that remain are sent later."""
REFILL = 0.2
"""Seconds of `PATIENCE` that each second without a withdrawal gives back."""
GATHER = 0.25
"""Seconds for which reasons to register or compare anew are gathered."""
AT_ONCE = 4
"""Registrations that are sent at the same time."""
COMPLAIN = 2
"""Failures of one registration in a row, while heartbeats succeed, after which it is a problem of its own."""
BEAT = "heartbeat"
QUERY = "registrations"


class Announcer:
    """Registers one machine and its destinations."""

    def __init__(
        self,
        api: ConsulApi,
        staleness: Staleness,
        *,
        node: str,
        meta: tuple[tuple[str, str], ...],
        address: IPv4Address | None,
        changed: Callable[[], None],
        host: str,
        gateway: bool = False,
        allows: Privileges = EVERYTHING,
    ) -> None:
        """Touch nothing yet.

        Without `address`, the machine has the one under which other machines know the Consul agent. `host` tells this
        host from another one whose appliance has the same node name. `changed` is called when a problem appears or is
        over.
        """
        self._api = api
        self._staleness = staleness
        self._node = node
        self._meta = meta
        self._allows = allows
        self._address = address
        self._changed = changed
        self._host = host
        self._gateway = gateway
        self.presence_port: int | None = None
        """Where this machine says that it is alive, if anywhere."""
        self.machine: Machine | None = None
        """This machine, once its address is known."""
        self.announced = trio.Event()
        """Set once this machine was registered for the first time."""
        self.problems: dict[str, str] = {}
        """By id, in words: registrations that Consul does not take while it takes heartbeats."""
        self._wanted: dict[str, Registration] = {}
        self._due: dict[str, trio.Event] = {}
        """Ids whose state Consul does not have yet. The event is set once sending it has succeeded or failed."""
        self._busy: set[str] = set()
        self._claims: frozenset[str] = frozenset()
        self._leaving = False
        self._registered = False
        self._settled = False
        self._anew = False
        self._alive = trio.Event()
        """Set while heartbeats succeed."""
        self._first_try = trio.Event()
        """Set once the first heartbeat was tried."""
        self._urgent = trio.Event()
        self._unsure = trio.Event()
        self._turns = trio.CapacityLimiter(AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._heart = UNWATCHED
        self._patience = PATIENCE
        self._waited = 0.0

    @property
    def parts(self) -> tuple[Part, ...]:
        """What keeps everything registered.

        The heartbeat has started after its first attempt. It fails with HostError then where this machine has no
        address under which others can reach it.
        """
        return (
            Part(name="consul registrations", run=self._keep_registered),
            Part(name="consul heartbeat", run=self._beat_on, silence=TTL / 2, awaited=False),
            Part(name="consul comparison", run=self._compare_now_and_then, silence=3 * CALL_TIMEOUT),
        )

    async def _keep_registered(self, heart: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        """Tell Consul what it does not know yet, until cancelled."""
        self._heart = heart
        async with trio.open_nursery() as nursery:
            try:
                self._nursery = nursery
                for service_id in self._due:
                    self._spawn(service_id)
                task_status.started()
                await heart.sleep()
            finally:
                self._nursery = None

    def again(self) -> None:
        """Register everything anew soon: the catalogue has lost it, which the agent may not know."""
        self._anew = True
        self._registered = False
        self._urgent.set()
        self._unsure.set()

    async def register(self, registration: Registration) -> None:
        """Announce a destination as soon as Consul takes it."""
        if not self._leaving:
            service_id = destination_id(self._node, registration.destination)
            self._wanted[service_id] = registration
            self._tell(service_id)

    async def deregister(self, destination: Destination) -> None:
        """Withdraw a destination. Wait for Consul only while it answers, and for `PATIENCE` at most."""
        service_id = destination_id(self._node, destination)
        self._wanted.pop(service_id, None)
        told = self._tell(service_id)
        began = trio.current_time()
        self._patience = min(PATIENCE, self._patience + (began - self._waited) * REFILL)
        if self._alive.is_set():
            with trio.move_on_after(self._patience):
                await told.wait()
        self._waited = trio.current_time()
        self._patience -= self._waited - began

    def claim(self, claims: frozenset[str]) -> None:
        """Announce with the machine the replicas that no other machine may run any more."""
        if claims != self._claims:
            self._claims = claims
            if self.machine is not None:
                self.machine = replace(self.machine, claims=claims)
                self._unsettle()

    async def withdraw(self) -> None:
        """Withdraw everything but the machine itself: it will be back, and keeps its replicas until then."""
        self._leaving = True
        wanted, self._wanted = self._wanted, {}
        told = [self._tell(service_id) for service_id in wanted]
        if self._alive.is_set():
            with trio.move_on_after(PATIENCE):
                for one in told:
                    await one.wait()

    # -- the machine

    async def _beat_on(self, heart: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        failures = 0
        while True:
            try:
                with trio.fail_after(PATIENT_BEAT):
                    await self._beat()
            except trio.TooSlowError:
                failures += 1
                self._failed(f"{self._api.where} did not take a heartbeat within {PATIENT_BEAT:g} s")
            except HostError as error:
                if not self._first_try.is_set():
                    raise
                failures += 1
                self._failed(cause(error))
            except Exception as error:  # noqa: BLE001 — without heartbeats, the others would take this machine for dead
                failures += 1
                self._failed(cause(error))
            else:
                failures = 0
                self._succeeded()
            self._first_try.set()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            if await heart.wait(self._urgent, RETRY.after(failures) if failures else HEARTBEAT):
                self._urgent = trio.Event()
                await trio.sleep(GATHER)

    async def _beat(self) -> None:
        if self.machine is None:
            address = self._address or _ipv4(await self._api.address())
            self.machine = Machine(
                node=self._node,
                address=address,
                meta=self._meta,
                allows=self._allows,
                gateway=self._gateway,
                presence_port=self.presence_port,
                claims=self._claims,
            )
        if not self._registered:
            await self._give_way()
            self._registered = True
            try:
                await self._api.register(machine_service(self.machine, self._host))
            except BaseException:
                self._registered = False
                raise
        await self._api.heartbeat(machine_id(self._node))

    async def _give_way(self) -> None:
        """Raise RetryError while the appliance of another host keeps this node name alive."""
        own = machine_id(self._node)
        found = (await self._api.own_services(self._node)).get(own)
        if found is not None and is_namesake(found, self._host) and await self._api.is_passing(own):
            clash = namesake(self._node)
            raise RetryError(clash.words, clash.remedy)

    def _failed(self, why: str) -> None:
        self._staleness.failed(BEAT, why)
        self._registered = False
        self._unsure.set()
        if self._alive.is_set():
            self._alive = trio.Event()

    def _succeeded(self) -> None:
        self._staleness.over(BEAT)
        if not self._alive.is_set():
            self._alive.set()
            self._unsure.set()
        self.announced.set()

    # -- what it serves

    def _tell(self, service_id: str) -> trio.Event:
        """Have Consul told what is wanted of an id. Return an event that is set after the first attempt."""
        told = self._due.setdefault(service_id, trio.Event())
        self._spawn(service_id)
        return told

    def _spawn(self, service_id: str) -> None:
        if self._nursery is not None and service_id not in self._busy:
            self._busy.add(service_id)
            self._nursery.start_soon(self._keep_telling, service_id)

    async def _keep_telling(self, service_id: str) -> None:
        failures = 0
        try:
            while service_id in self._due:
                await self._alive.wait()
                async with self._turns:
                    failures = await self._attempt(service_id, failures)
                if failures:
                    await trio.sleep(RETRY.after(failures))
        finally:
            self._busy.discard(service_id)

    async def _attempt(self, service_id: str, failures: int) -> int:
        """Have Consul told once of an id; return how many attempts have failed in a row."""
        told = self._due.pop(service_id)
        try:
            with self._heart.another(f"telling Consul of {service_id}", 2 * CALL_TIMEOUT):
                await self._send(service_id)
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one registration
            self._due.setdefault(service_id, trio.Event())
            self._complain(service_id, error, failures + 1)
            return failures + 1
        except BaseException:
            self._due.setdefault(service_id, trio.Event())  # whoever does this next has it to do
            raise
        finally:
            told.set()
        self._is_over(service_id)
        return 0

    async def _send(self, service_id: str) -> None:
        registration = self._wanted.get(service_id)
        if registration is None:
            await self._api.deregister(service_id)
        elif self.machine is not None:
            await self._api.register(destination_service(self.machine, registration))

    def _complain(self, service_id: str, error: Exception, failures: int) -> None:
        if failures >= COMPLAIN and self._alive.is_set():
            self.problems[service_id] = f'"{service_id}" in Consul is out of date, and is tried again: {cause(error)}'
            self._changed()

    def _is_over(self, service_id: str) -> None:
        if self.problems.pop(service_id, None) is not None:
            log.info("Consul has taken the registration", id=service_id)
            self._changed()

    async def _compare_now_and_then(self, heart: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await heart.wait(self._first_try)
        failures = 0
        began = trio.current_time()
        while True:
            heart()
            self._unsure = trio.Event()
            try:
                await self._compare()
            except Exception as error:  # noqa: BLE001 — the next comparison reads all of it again
                self._staleness.failed(QUERY, cause(error))
                failures += 1
                await heart.sleep(RETRY.after(failures))
                continue
            self._staleness.over(QUERY)
            failures = 0
            left = began + SETTLE - trio.current_time()
            if await heart.wait(self._unsure, COMPARE if self._settled else left):
                await trio.sleep(GATHER)
            self._settled = self._settled or trio.current_time() - began >= SETTLE

    async def _compare(self) -> None:
        found = await self._api.own_services(self._node)
        anew, self._anew = self._anew, False
        own = machine_id(self._node)
        if own in found and is_namesake(found[own], self._host):
            self._unsettle()  # the next attempt finds out whether that appliance is alive
            return
        if self.machine is not None:
            wanted = machine_service(self.machine, self._host)
            if self._registered and not (own in found and same_service(found[own], wanted)):
                self._unsettle()
            for service_id, registration in self._wanted.items():
                arguments = destination_service(self.machine, registration)
                if anew or service_id not in found or not same_service(found[service_id], arguments):
                    self._tell(service_id)
        if self._settled:
            for service_id in found.keys() - self._wanted.keys() - {own}:
                self._tell(service_id)

    def _unsettle(self) -> None:
        self._registered = False
        self._urgent.set()


def _ipv4(address: str) -> IPv4Address:
    try:
        return IPv4Address(address)
    except AddressValueError:
        raise HostError(
            f"the Consul agent advertises {address}, but machines of the mesh reach each other over IPv4 only",
            "give the agent an IPv4 address (advertise_addr in its configuration)",
        ) from None
