"""Watching Consul: blocking queries as its documentation asks for them, and never more than a fixed number.

Consul allows 200 connections per client address, and a query that is given up holds its connection until its wait ends.
So a query that is no longer wanted is waited for, not cancelled. Only the first `DIRECT` services of interest have a
query of their own. The rest share one query on the catalogue, and are read again when that has changed: many services
cost more calls per change, but never more connections.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

import trio

from appliance.drivers.consul.api import RETRY, WAIT
from appliance.drivers.consul.transport import CALL_TIMEOUT
from appliance.errors import cause
from appliance.heartbeat import UNWATCHED, Part
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from appliance.drivers.consul.staleness import Staleness
    from appliance.heartbeat import Heartbeat

    Entries = list[dict[str, object]]

DIRECT = 48
"""Most services with a blocking query of their own. With those for machines, specs and catalogue that makes 51
connections, or 52 where every service is of interest. One more reads new services; other calls come on top."""
BUSY = Schedule((0.0, 0.0, 0.1, 0.2, 0.5, 1.0))
"""Seconds between queries that return at once, the 1st, 2nd, … in a row; the last value repeats."""
AT_ONCE = 0.2
"""A query that returns within so many seconds did not wait."""
CATCH_UP = 1.0
"""Seconds after which an index that is lower than before is read again, before it is believed."""
LONGEST = WAIT * 17 / 16 + 3 * CALL_TIMEOUT
"""Seconds without progress after which a query is stuck: its wait, to which Consul adds a sixteenth, and some calls."""
REST = 4
"""The pause after reading the services without a query of their own lasts this many times as long as the reading. While
they keep changing, reading them takes a fifth of the time; a single change is read at once."""

_T = TypeVar("_T")


class Queries:
    """Follows values with blocking queries, and counts those that wait."""

    def __init__(self, staleness: Staleness, went_back: Callable[[bool], None] = lambda _: None) -> None:
        """Query nothing yet.

        `went_back` is called with False when an index is lower than before, and with True once it stays lower:
        Consul's data are of an earlier time then.
        """
        self._staleness = staleness
        self._went_back = went_back
        self.open = 0

    async def follow(
        self,
        query: str,
        fetch: Callable[[int], Awaitable[tuple[int, _T]]],
        took: Callable[[_T], Awaitable[None]],
        *,
        wanted: Callable[[], bool] = lambda: True,
        beat: Heartbeat = UNWATCHED,
    ) -> None:
        """Hand each new value to `took`, as long as `wanted`; beat at each query.

        `fetch` returns index and value once they differ from the index given, and at once for 0.
        """
        index = last = failures = quick = 0
        behind = False
        while wanted():
            beat()
            began = trio.current_time()
            self.open += 1
            try:
                found, value = await fetch(index)
                if found < last and not behind:  # a server that has just started is behind for a moment
                    behind, index = True, 0
                    self._went_back(False)
                    await trio.sleep(CATCH_UP)
                    continue
                if found < last:  # data were lost or restored: the answer is no successor of what was known
                    self._went_back(True)
                    index = last = 0
                    continue
                behind = False
                if index == 0 or found != index:
                    await took(value)
            except Exception as error:  # noqa: BLE001 — what was known is held, whatever is wrong with an answer
                self._staleness.failed(query, cause(error))
                index = quick = 0
                failures += 1
                # Half of it at random, so that machines that lost a server together do not come back together.
                await trio.sleep(RETRY.after(failures) * random.uniform(0.5, 1.0))
                continue
            finally:
                self.open -= 1
            self._staleness.over(query)
            failures = 0
            waited = trio.current_time() - began
            last = max(found, 1)
            # When a backup is restored, Consul ends a query early and without news: read what is there now.
            index = 0 if found == index and waited < WAIT else last
            quick = quick + 1 if waited < AT_ONCE else 0
            await trio.sleep(BUSY.after(quick))
        self._staleness.over(query)  # it may have failed last, and is not asked again


class ServiceWatch:
    """Reads the entries of the services of interest again whenever they change."""

    def __init__(
        self,
        queries: Queries,
        *,
        fetch: Callable[[str, int], Awaitable[tuple[int, Entries]]],
        fetch_catalogue: Callable[[int], Awaitable[int]],
        took: Callable[[str, Entries], Awaitable[None]],
        direct: int = DIRECT,
    ) -> None:
        self._queries = queries
        self._fetch = fetch
        self._fetch_catalogue = fetch_catalogue
        self._took = took
        self._direct = direct
        self._nursery: trio.Nursery | None = None
        self._beat = UNWATCHED
        self._following: set[str] = set()
        """Services with a query under way, wanted or not."""
        self._sweeping = False
        self._fresh: set[str] = set()
        """Services without a query of their own that have not been read yet."""
        self._reading = False
        self.wanted: frozenset[str] = frozenset()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What watches."""
        return (Part(name="consul services", run=self._run),)

    async def _run(self, beat: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        """Watch until cancelled."""
        self._beat = beat
        async with trio.open_nursery() as nursery:
            try:
                self._nursery = nursery
                self._fill()
                self._begin_reading()
                task_status.started()
                await beat.sleep()
            finally:
                self._nursery = None

    def watch(self, services: Iterable[str]) -> None:
        """Replace the services of interest."""
        before, self.wanted = self.wanted, frozenset(services)
        if before != self.wanted:
            sweeping = self._sweeping
            self._fill()
            newcomers = self.wanted - before - self._following
            if sweeping and newcomers:
                self._fresh |= newcomers
                self._begin_reading()

    def _begin_reading(self) -> None:
        if self._fresh and not self._reading and self._nursery is not None:
            self._reading = True
            self._nursery.start_soon(self._read_fresh)

    def _fill(self) -> None:
        if self._nursery is None:
            return
        for service in sorted(self.wanted - self._following):
            if len(self._following) >= self._direct:
                break
            self._following.add(service)
            self._nursery.start_soon(self._follow, service)
        if self.wanted - self._following and not self._sweeping:
            self._sweeping = True
            self._nursery.start_soon(self._sweep)

    async def _follow(self, service: str) -> None:
        async def took(entries: Entries) -> None:
            if service in self.wanted:
                await self._took(service, entries)

        try:
            with self._beat.another(f"the query of service {service}", LONGEST) as beat:
                await self._queries.follow(
                    f"service {service}",
                    lambda index: self._fetch(service, index),
                    took,
                    wanted=lambda: service in self.wanted,
                    beat=beat,
                )
        finally:
            self._following.discard(service)
        self._fill()

    async def _sweep(self) -> None:
        """Read the services without a query of their own, again whenever the catalogue has changed."""

        async def fetch(index: int) -> tuple[int, None]:
            return await self._fetch_catalogue(index), None

        async def took(_: None) -> None:
            began = trio.current_time()
            await self._read_all(self.wanted - self._following, beat)
            await beat.sleep(REST * (trio.current_time() - began))

        try:
            with self._beat.another("the query of the catalogue", LONGEST) as beat:
                await self._queries.follow(
                    "catalogue", fetch, took, wanted=lambda: bool(self.wanted - self._following), beat=beat
                )
        finally:
            self._sweeping = False
        self._fill()

    async def _read_fresh(self) -> None:
        """Read new services without a query of their own, one after the other."""

        async def fetch(index: int) -> tuple[int, None]:
            return index + 1, None

        async def took(_: None) -> None:
            services = frozenset(self._fresh)
            await self._read_all(services & self.wanted, beat)
            self._fresh -= services

        try:
            with self._beat.another("the query of new services", LONGEST) as beat:
                await self._queries.follow(
                    "new services", fetch, took, wanted=lambda: bool(self._fresh & self.wanted), beat=beat
                )
        finally:
            self._reading = False

    async def _read_all(self, services: Iterable[str], beat: Heartbeat) -> None:
        for service in sorted(services):
            beat()
            _, entries = await self._fetch(service, 0)
            if service in self.wanted:
                await self._took(service, entries)
