"""Which backend gets the next connection: weighted random choice, with passive ejection of those that fail."""

from __future__ import annotations

import time
from bisect import bisect_right
from itertools import accumulate
from random import random
from types import MappingProxyType
from typing import TYPE_CHECKING

from appliance.model.stats import BackendStats
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from ipaddress import IPv4Address

    from appliance.model.network import Backend

EJECT_SECONDS = Schedule((0.5, 1.0, 2.0, 5.0, 10.0))
"""How long a backend that has failed is left out."""


class BackendState:
    """One backend of one listener, with its counters. Counters only grow, except `active`."""

    __slots__ = (
        "active",
        "address",
        "backend",
        "bytes_in",
        "bytes_out",
        "ejected_until",
        "failed",
        "failures",
        "netns",
        "opened",
        "paused",
        "source",
        "spare",
    )

    def __init__(self, backend: Backend) -> None:
        self.address = (str(backend.address), backend.port)
        self.take(backend)
        self.opened = 0
        """Connections or UDP sessions that were established."""
        self.failed = 0
        """Dials that failed."""
        self.active = 0
        self.bytes_in = 0
        """Bytes from clients to this backend."""
        self.bytes_out = 0
        """Bytes from this backend to clients."""
        self.failures = 0
        """Failures since the last success."""
        self.ejected_until = 0.0

    def take(self, backend: Backend) -> None:
        """Take what has changed; address and port are the same."""
        self.backend = backend
        self.spare = backend.spare
        self.paused = backend.paused
        self.source = (str(backend.source), 0) if backend.source is not None else None
        """Where to dial from, with port 0."""
        self.netns = "" if backend.netns is None else str(backend.netns)
        """The text of its namespace's NetnsId: it is dialled from there if that has a door."""


class Balancer:
    """Picks among the backends of one listener."""

    def __init__(
        self,
        backends: Iterable[Backend] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        pauses: Schedule = EJECT_SECONDS,
        refused: Callable[[IPv4Address], None] | None = None,
    ) -> None:
        """`refused` is told of each container that fails after it had served."""
        self._clock = clock
        self._refused = refused
        self._pauses = pauses
        self.states: dict[tuple[str, int], BackendState] = {}
        """By (address, port)."""
        self._pools: dict[bool, tuple[list[BackendState], list[float]]] = {}
        self._ejected = False
        self.update(backends)

    def update(self, backends: Iterable[Backend]) -> list[BackendState]:
        """Take the new backends, keep counters of those that stay, return the states of those that left."""
        former = self.states
        self.states = {}
        for backend in backends:
            key = (str(backend.address), backend.port)
            state = former.pop(key, None)
            if state is None:
                state = BackendState(backend)
            state.take(backend)
            if state.spare:
                self.alive(state)
            self.states[key] = state
        self._rebuild()
        return list(former.values())

    def stats(self, moving: Mapping[BackendState, tuple[int, int]] = MappingProxyType({})) -> tuple[BackendStats, ...]:
        """Return the counters of the backends; `moving` has bytes in and out that are not counted there yet."""
        now = self._clock()
        counted = []
        for state in self.states.values():
            bytes_in, bytes_out = moving.get(state, (0, 0))
            counted.append(
                BackendStats(
                    backend=state.backend,
                    opened=state.opened,
                    failed=state.failed,
                    active=state.active,
                    bytes_in=state.bytes_in + bytes_in,
                    bytes_out=state.bytes_out + bytes_out,
                    ejected=max(0.0, state.ejected_until - now),
                )
            )
        return tuple(counted)

    def pick(self, *, local_only: bool = False, tried: tuple[BackendState, ...] = ()) -> BackendState | None:
        """Return a backend at random by weight, or None.

        Ejected ones are chosen only when nothing else is left, spares after them; those in `tried` never.
        """
        if self._ejected:
            self._rebuild()
        states, cumulative = self._pools[local_only]
        if not states:
            return None
        if not tried:
            if len(states) == 1:
                return states[0]
            return states[bisect_right(cumulative, random() * cumulative[-1])]
        rest = [s for s in states if s not in tried] or [
            s for s in self.states.values() if s not in tried and _may_serve(s.backend, local_only=local_only)
        ]
        if not rest:
            return None
        weights = list(accumulate(float(s.backend.weight) for s in rest))
        return rest[bisect_right(weights, random() * weights[-1])]

    def can_serve(self, *, local_only: bool) -> bool:
        """Whether there is a backend that is neither left out nor a spare."""
        if self._ejected:
            self._rebuild()
        now = self._clock()
        return any(s.ejected_until <= now and not s.spare for s in self._pools[local_only][0])

    def failed(self, state: BackendState) -> None:
        """Count a failed dial and leave the backend out for a while, unless it is a spare: there is no other then."""
        state.failed += 1
        if state.spare:
            return
        state.failures += 1
        state.ejected_until = self._clock() + self._pauses.after(state.failures)
        self._ejected = True
        if state.failures == 1 and state.backend.local and self._refused is not None:
            self._refused(state.backend.address)

    def succeeded(self, state: BackendState) -> None:
        """Count an established connection; the backend is in again."""
        state.opened += 1
        self.alive(state)

    def alive(self, state: BackendState) -> None:
        """Note a sign of life; the backend is in again."""
        if state.failures:
            state.failures = 0
            state.ejected_until = 0.0

    def _rebuild(self) -> None:
        now = self._clock()
        self._ejected = False
        usable = []
        for state in self.states.values():
            if state.ejected_until > now:
                self._ejected = True
            else:
                usable.append(state)
        for local_only in (False, True):
            allowed = [s for s in self.states.values() if _may_serve(s.backend, local_only=local_only)]
            staying = [s for s in allowed if not s.backend.retiring] or allowed
            ready = [s for s in staying if not s.spare] or staying
            pool = [s for s in ready if s in usable] or ready
            self._pools[local_only] = (pool, list(accumulate(float(s.backend.weight) for s in pool)))


def _may_serve(backend: Backend, *, local_only: bool) -> bool:
    """Whether callers of a kind get this backend at all: peers (`local_only`), or workloads of this host."""
    return backend.local if local_only else not backend.retiring
