"""One answer made of those of several workers, and of workers that have ended. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from appliance.model.stats import BackendStats, ListenerStats, ShareStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from appliance.model.network import Listener

ADDED = (
    *("accepted", "refused", "failed", "active", "evicted", "dropped"),
    *("starved", "stuck", "stuck_bytes", "given_up"),
)
"""Fields of ListenerStats that add up."""
BACKEND_ADDED = ("opened", "failed", "active", "bytes_in", "bytes_out")
"""The same of BackendStats."""


def merged(listener: Listener, parts: Iterable[ListenerStats]) -> ListenerStats:
    """Return the counters of one listener, over all backends that it has now."""
    known = [part for part in parts if part.port == listener.port]
    of_backend: dict[tuple[str, int], list[BackendStats]] = {}
    for part in known:
        for one in part.backends:
            of_backend.setdefault((str(one.backend.address), one.backend.port), []).append(one)
    backends = []
    for backend in listener.backends:
        found = of_backend.get((str(backend.address), backend.port), [])
        counts = {name: sum(getattr(one, name) for one in found) for name in BACKEND_ADDED}
        ejected = max((one.ejected for one in found), default=0.0)
        backends.append(BackendStats(backend=backend, ejected=ejected, **counts))
    counts = {name: sum(getattr(part, name) for part in known) for name in ADDED}
    return ListenerStats(destination=listener.destination, port=listener.port, backends=tuple(backends), **counts)


def ended(stats: ListenerStats) -> ListenerStats:
    """Return what stays of the counters of a worker that has ended: its connections are gone."""
    backends = tuple(replace(one, active=0, ejected=0.0) for one in stats.backends)
    return replace(stats, active=0, stuck=0, stuck_bytes=0, backends=backends)


def shares(parts: Iterable[ShareStats]) -> tuple[ShareStats, ...]:
    """Return one entry for each caller of what several workers tell."""
    found: dict[str, ShareStats] = {}
    for part in parts:
        before = found.get(part.caller)
        if before is None:
            found[part.caller] = part
            continue
        counts = {name: getattr(before, name) + getattr(part, name) for name in ("held", "stuck", "given_up")}
        found[part.caller] = replace(before, last=max(before.last, part.last), **counts)
    return tuple(found.values())


def summed(parts: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    """Add up counters by name."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def lasting(counters: Mapping[str, int]) -> Mapping[str, int]:
    """Return those that only grow."""
    return {name: count for name, count in counters.items() if not name.endswith("_now")}
