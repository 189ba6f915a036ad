"""What machines serve, of the services that are of interest here.

An endpoint that an answer lacks is dropped only where it was really removed (`loss.py`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.consul.codec import MESHBOX, parse_endpoints
from appliance.drivers.consul.watch import LONGEST, ServiceWatch
from appliance.errors import RetryError
from appliance.heartbeat import Part
from appliance.model.registry import Interests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from appliance.drivers.consul.api import ConsulApi
    from appliance.drivers.consul.loss import LossDetector
    from appliance.drivers.consul.staleness import Staleness
    from appliance.drivers.consul.watch import Queries
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Endpoint
    from appliance.model.names import Destination

    ByPlace = dict[tuple[str, Destination], Endpoint]
    """The endpoints of one service by node and destination."""

log = structlog.get_logger()

NOT_OURS = frozenset({MESHBOX, "consul"})
"""Services of the catalogue to which no container belongs."""


class Endpoints:
    """The endpoints of all services of interest, those of this machine included."""

    def __init__(
        self,
        api: ConsulApi,
        staleness: Staleness,
        loss: LossDetector,
        queries: Queries,
        *,
        changed: Callable[[], None],
    ) -> None:
        """Call `changed` after every answer and change of interest."""
        self._api = api
        self._staleness = staleness
        self._loss = loss
        self._queries = queries
        self._changed = changed
        self._watch = ServiceWatch(queries, fetch=api.health, fetch_catalogue=api.catalogue, took=self._take)
        self._known: dict[str, ByPlace] = {}
        self._answered: dict[str, ByPlace] = {}
        """What Consul itself said last; differs from `_known` while something is held."""
        self._complaints: dict[str, tuple[str, ...]] = {}
        self._interests = Interests()
        self._every: frozenset[str] | None = None
        """Services of the catalogue, while all are of interest. It only grows: what is gone has no endpoints."""
        self._all_wanted = trio.Event()

    def __iter__(self) -> Iterator[Endpoint]:
        """Yield all endpoints that are known."""
        for _, found in sorted(self._known.items()):
            yield from found.values()

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is wrong with endpoints in Consul, in words, by service."""
        return tuple(text for _, texts in sorted(self._complaints.items()) for text in texts)

    def restore(self, endpoints: Iterable[Endpoint]) -> None:
        """Take over the endpoints that were known before the start."""
        for e in endpoints:
            self._known.setdefault(e.destination.name.service, {})[e.node, e.destination] = e

    @property
    def parts(self) -> tuple[Part, ...]:
        """What follows the services of interest."""
        return (*self._watch.parts, Part(name="consul catalogue", run=self._follow_names, silence=LONGEST))

    async def _follow_names(self, beat: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        """Follow the names of all services, once all are of interest; until cancelled."""
        task_status.started()
        await beat.wait(self._all_wanted)
        await self._queries.follow("all services", self._api.services, self._take_names, beat=beat)

    def watch(self, interests: Interests) -> None:
        """Replace the services of interest; endpoints of others are dropped."""
        self._interests = interests
        services = interests.services
        if interests.everything:
            if self._every is None:
                self._every = frozenset(self._known)
            self._all_wanted.set()
            services |= self._every
        for service in self._known.keys() - services:
            del self._known[service]
            self._answered.pop(service, None)
            self._complaints.pop(service, None)
        self._watch.watch(services)
        self._changed()

    async def names(self) -> frozenset[str]:
        """Return the names of all services in Consul; none while they cannot be asked for."""
        if self._staleness.held:
            return frozenset()
        try:
            return (await self._api.services())[1] - NOT_OURS
        except RetryError as error:
            log.debug("cannot ask Consul for the names of all services", cause=str(error))
            return frozenset()

    async def ask(self, services: frozenset[str]) -> list[Endpoint]:
        """Return what Consul says now of those services that are not watched; nothing while it cannot be asked."""
        found: list[Endpoint] = []
        for service in sorted(services - self._answered.keys()) if not self._staleness.held else ():
            try:
                _, entries = await self._api.health(service)
            except RetryError as error:
                log.debug("cannot ask Consul for a service", service=service, cause=str(error))
                break
            found += parse_endpoints(entries)[0]
        return found

    def settle(self) -> None:
        """Drop what was held and has not come back."""
        self._known = {service: dict(found) for service, found in self._answered.items()}
        self._changed()

    def forget(self) -> None:
        """Drop all endpoints: they are those of another Consul."""
        self._known.clear()

    async def _take_names(self, names: frozenset[str]) -> None:
        self._every = (self._every or frozenset()) | (names - NOT_OURS)
        self.watch(self._interests)

    async def _take(self, service: str, entries: list[dict[str, Any]]) -> None:
        known, found = self._known.get(service, {}), self._accept(service, entries)
        self._known[service] = {**known, **found}
        self._known[service] = await self._loss.merge(known, found, partial(self._accept_again, service))
        self._changed()

    async def _accept_again(self, service: str) -> ByPlace:
        return self._accept(service, (await self._api.health(service))[1])

    def _accept(self, service: str, entries: list[dict[str, Any]]) -> ByPlace:
        """Note what an answer tells; return its endpoints."""
        endpoints, self._complaints[service] = parse_endpoints(entries)
        ordered = sorted(endpoints, key=lambda e: (e.destination, e.node))
        self._answered[service] = found = {(e.node, e.destination): e for e in ordered}
        return found
