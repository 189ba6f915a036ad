"""Keeps this machine and what it serves registered with its Consul agent.

What is wanted is remembered here and compared with what the agent has: at start (a crash leaves things behind), when
the agent does not know our check any more (it was restarted without its data), after a call that failed, and now and
then. Only ids that begin with `meshbox:<node>` are ever touched.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, TypeVar

import trio

from appliance.drivers.consulcodec import (
    TTL,
    destination_id,
    destination_service,
    machine_id,
    machine_service,
    same_service,
)
from appliance.errors import RetryError
from appliance.model.facts import Machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from appliance.drivers.consulapi import ConsulApi
    from appliance.drivers.consulwatch import Held
    from appliance.model.names import Destination
    from appliance.model.network import Registration

HEARTBEAT = TTL / 4
"""Seconds between heartbeats."""
COMPARE = 60.0
"""Seconds between comparisons when all is well."""
SETTLE = 5.0
"""Seconds after the start for which leftovers of a former run stay: most of them are about to be wanted again."""
PATIENCE = 2.0
"""Seconds that a change of the wanted state waits for Consul; after that it is made up for later."""
RETRY = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds until Consul is tried again after the 1st, 2nd, … failure in a row; the last value repeats."""
QUERY = "registrations"

_T = TypeVar("_T")


class Announcer:
    """Registers one machine and its destinations."""

    def __init__(
        self,
        api: ConsulApi,
        held: Held,
        *,
        node: str,
        meta: tuple[tuple[str, str], ...],
        address: IPv4Address | None,
        gateway: bool = False,
    ) -> None:
        """Without `address`, it is the one under which the Consul agent is known to the other machines."""
        self._api = api
        self._held = held
        self._node = node
        self._meta = meta
        self._address = address
        self._gateway = gateway
        self.machine: Machine | None = None
        """This machine, once its address is known."""
        self.announced = trio.Event()
        """Set once this machine was registered for the first time."""
        self._wanted: dict[Destination, Registration] = {}
        self._dirty = trio.Event()
        self._settled = False
        self._anew = False
        self._failures = 0
        self._lock = trio.Lock()

    @property
    def behind(self) -> bool:
        """Whether Consul is known to lack something."""
        return self._dirty.is_set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep everything registered until cancelled. Started once the machine is (or Consul failed to)."""
        await self._keep(self._compare)
        task_status.started()
        began = compared = trio.current_time()
        while True:
            with trio.move_on_after(HEARTBEAT):
                await self._dirty.wait()
                await trio.sleep(RETRY[min(self._failures, len(RETRY) - 1)])
            now = trio.current_time()
            if not self._settled and now - began >= SETTLE:
                self._settled = True
                self._dirty.set()
            if self._dirty.is_set() or now - compared >= COMPARE:
                await self._keep(self._compare)
                compared = now
            await self._keep(self._beat)

    def again(self) -> None:
        """Register everything anew soon: the catalogue has lost it, and the agent may not know."""
        self._anew = True
        self._dirty.set()

    async def register(self, registration: Registration) -> None:
        """Announce a destination, now if Consul answers at once, else later."""
        self._wanted[registration.destination] = registration
        if self.machine is not None:
            await self._try(self._api.register, destination_service(self.machine, registration))

    async def deregister(self, destination: Destination) -> None:
        """Withdraw a destination, now if Consul answers at once, else later."""
        self._wanted.pop(destination, None)
        await self._try(self._api.deregister, destination_id(self._node, destination))

    async def withdraw(self) -> None:
        """Withdraw everything but the machine itself: it will be back, and its replicas stay its own until then."""
        for destination in list(self._wanted):
            await self.deregister(destination)

    async def _try(self, call: Callable[[_T], Awaitable[None]], argument: _T) -> None:
        with trio.move_on_after(PATIENCE) as patience:
            async with self._lock:
                try:
                    await call(argument)
                except RetryError as error:
                    self._held.failed(QUERY, error)
                    self._dirty.set()
        if patience.cancelled_caught:
            self._dirty.set()

    async def _keep(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._lock:
                await step()
        except RetryError as error:
            self._held.failed(QUERY, error)
            self._failures += 1
            self._dirty.set()

    async def _beat(self) -> None:
        if not self._dirty.is_set():
            await self._api.heartbeat(machine_id(self._node))

    async def _compare(self) -> None:
        self._dirty = trio.Event()
        if self.machine is None:
            address = self._address or IPv4Address(await self._api.address())
            self.machine = Machine(node=self._node, address=address, meta=self._meta, gateway=self._gateway)
        found = await self._api.own_services(self._node)
        wanted = {machine_id(self._node): machine_service(self.machine)}
        for destination, registration in self._wanted.items():
            wanted[destination_id(self._node, destination)] = destination_service(self.machine, registration)
        for service_id, arguments in wanted.items():
            if self._anew or service_id not in found or not same_service(found[service_id], arguments):
                await self._api.register(arguments)
        for service_id in found.keys() - wanted.keys():
            if self._settled:
                await self._api.deregister(service_id)
        self._anew = False
        self._failures = 0
        self._held.over(QUERY)
        self.announced.set()
