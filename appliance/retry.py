"""How long to wait before trying again. Time is given by the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class Schedule(tuple[float, ...]):
    """Seconds until the next attempt after the 1st, 2nd, … failure in a row; the last value repeats."""

    __slots__ = ()

    def after(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row, of which there is at least one."""
        return self[min(max(failures, 1), len(self)) - 1]


FIRST = 1.0
LAST = 60.0
"""Seconds: the delay after the first charge, and the longest."""
QUIET = 2 * LAST
"""Seconds after the last charge at which a subject starts afresh."""


class Backoff:
    """Delays by subject: doubling, and forgotten when it has been quiet.

    Times are seconds of any clock that never goes backwards.
    """

    def __init__(self) -> None:
        self._charged: dict[Hashable, tuple[float, float]] = {}
        """Subject → when it was last charged, and the delay from then on."""

    def charge(self, subject: Hashable, now: float) -> float:
        """Count an attempt against it; return the seconds until the next one may be made."""
        for other in [s for s, (when, _) in self._charged.items() if now - when > QUIET]:
            del self._charged[other]
        before = self._charged.get(subject)
        delay = FIRST if before is None else min(before[1] * 2, LAST)
        self._charged[subject] = (now, delay)
        return delay

    def left(self, subject: Hashable, now: float) -> float:
        """Return the seconds that it still has to wait; 0 when it need not."""
        when, delay = self._charged.get(subject, (now, 0.0))
        return max(0.0, when + delay - now)

    def forget(self, subject: Hashable) -> None:
        """Note that it went well."""
        self._charged.pop(subject, None)
