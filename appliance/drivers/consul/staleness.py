"""Since when, and why, what is known from Consul is only what was last known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

START = "start"
"""Stands for the first answers, which are not there yet."""


class Staleness:
    """Which queries fail, since when and why. While any does, what was last known is held."""

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        """`clock` gives seconds since the epoch; `changed` is called when holding begins or ends."""
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
        """The first of the reasons; not having heard anything yet only where there is no better one."""
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
        """Note that it works."""
        self._began.pop(query, None)
        if self._failing.pop(query, None) is not None:
            if not self._failing:
                self.since = None
            self._changed()
