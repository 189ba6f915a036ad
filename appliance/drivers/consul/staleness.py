"""Since when, and why, what is known from Consul is only what was last known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

START = "start"
"""Stands for the first answers of all queries, until they have come."""


class Staleness:
    """Which queries fail, since when and why. While one fails, what was last known is held."""

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        """Hold nothing yet. `clock` gives Unix time in seconds. Call `changed` when a query fails, or works again."""
        self._clock = clock
        self._changed = changed
        self._failing: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self.since: float | None = None

    @property
    def held(self) -> bool:
        """Whether what is known is held, because some query fails."""
        return self.since is not None

    @property
    def why(self) -> str:
        """The first of the causes. That no answer has come yet counts only where there is no other cause."""
        return next((why for query, why in self._failing.items() if query != START), self._failing.get(START, ""))

    def failed(self, query: str, cause: object) -> None:
        """Note that a query failed."""
        before = dict(self._failing)
        self._failing[query] = str(cause)
        self._began.setdefault(query, trio.current_time())
        if self.since is None:
            self.since = self._clock()
        if before != self._failing:
            self._changed()

    def lasted(self, query: str) -> float:
        """Return for how many seconds a query has failed; 0 for one that works."""
        began = self._began.get(query)
        return 0.0 if began is None else trio.current_time() - began

    def over(self, query: str) -> None:
        """Note that a query works."""
        self._began.pop(query, None)
        if self._failing.pop(query, None) is not None:
            if not self._failing:
                self.since = None
            self._changed()
