"""What each caller may hold of two things that all share: this process's file descriptors, and the host's memory.

Nobody is bounded while there is plenty. Beyond a mark the callers that hold most give way: what they opened last goes
first, until all that hold more than a level are down to it. Callers below that level notice nothing. Rules of this
file:

- A workload is one caller, by its key. A peer machine is not: its proxy speaks for many, and bounds each itself. Its
  connections to one destination count together, and their share is PEER_WEIGHT times as large. Those go first that
  carried least, and of these the oldest: idle ones that pile up, rather than those of callers that come and go.
- The kernel gives out the lowest free descriptor (open(2)). So a descriptor that is not below a number says that at
  least so many are in use, whoever in this process has opened them. That costs one comparison for each connection.
- What has been given up is closed when the batch of events ends. Until then accepting stops after each client.
- A direction is *stuck* while its reader does not take what was sent. What is sent to it meanwhile fills a pipe and the
  receive buffer: memory of the host, which no container's own limit counts.
"""

from __future__ import annotations

import os
import resource
import time
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from appliance.model.stats import ShareStats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from appliance.dataplane.access import Caller
    from appliance.model.names import Destination

log = structlog.get_logger()

MARK: Final = 80
"""Percent of the descriptors that may be used before anybody is bounded."""
RESERVE = 1024
"""Descriptors that connections never take: for control plane, DNS (which takes 768 at most) and the admin socket."""
PEER_WEIGHT: Final = 4
"""A peer's connections to one destination are those of so many callers: several, though not known how many."""
AT_A_TIME: Final = 2
"""Connections given up for each that is accepted beyond the mark. They have at least as many descriptors."""
PART: Final = 16
"""Of so many connections one is chosen in advance: choosing looks at all of them."""
VALID = 1.0
"""Seconds for which a choice holds: callers close connections themselves."""
NOTHING = 0.1
"""Seconds until another choice when there was nothing to choose from."""
TOLD = 60.0
"""Seconds between two log lines about one caller."""
MOST_KEPT = 256
"""Callers that gave way of which is kept when and how much; the latest."""

ROOM: Final = 32
"""The reciprocal of the part of the host's memory that stuck directions may hold before anybody is bounded."""
MOST: Final = 8
"""The same of the part beyond which the newest stuck connections of those that hold most are reset."""
IN_A_TURN: Final = 32
"""Connections reset for want of memory before traffic has its turn."""


class Holding(Protocol):
    """What a caller has: a pair, a dial under way, or a session."""

    caller: Caller

    @property
    def destination(self) -> Destination:
        """What was called."""

    @property
    def opened(self) -> float:
        """When, in seconds of the monotonic clock."""

    @property
    def carried(self) -> int:
        """Bytes in both directions so far."""

    @property
    def stuck(self) -> int:
        """Bytes of memory that its stuck directions count for."""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""

    def give_up(self) -> None:
        """End it now, because its caller holds more than its share."""


class GaveWay:
    """What one caller has given up."""

    __slots__ = ("count", "last", "told")

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        """When it last gave way, in seconds since the epoch."""
        self.told = 0.0
        """When the log last said so."""


class Shares:
    """The shares of one process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, files: int = 0, memory: int = 0) -> None:
        """`files` is the limit of open files (0: that of this process), `memory` the host's bytes (0: as they are)."""
        limit = files or _files()
        reserve = min(RESERVE, limit // 8)
        self._loop = loop
        self.most = limit - reserve
        """The lowest descriptor that no connection may have, unless another one gives way."""
        self.last = limit - reserve // 2
        """The lowest descriptor that no connection may have at all."""
        self.mark = self.most * MARK // 100
        """The lowest descriptor for which somebody gives way."""
        self.holdings: Callable[[], Iterable[Holding]] = _nothing
        """Returns all that callers have."""
        memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.room = memory // ROOM
        """Bytes that stuck directions may hold before anybody is bounded."""
        self.most_stuck = memory // MOST
        """Bytes that they may hold at all."""
        self.stuck = 0
        """Bytes that they count for."""
        self._stuck_of: dict[str, int] = {}
        self._chosen: list[Holding] = []
        """Next to give way, the last one first."""
        self._choose_after = 0.0
        self._chosen_until = 0.0
        self._relieving = False
        self._gave_way: dict[str, GaveWay] = {}
        """By caller, the latest last."""

    # Descriptors

    def make_room(self, fd: int) -> bool:
        """Let those that hold most give way for a client with this descriptor; return whether it may have it."""
        freed = False
        for _ in range(AT_A_TIME):
            one = self._next()
            if one is None:
                break
            self._give_up(one)
            freed = True
        return fd < (self.last if freed else self.most)

    def _next(self) -> Holding | None:
        """Return what gives way next; None if there is nothing."""
        now = time.monotonic()
        if now >= self._chosen_until:
            self._chosen.clear()
        while True:
            while self._chosen:
                one = self._chosen.pop()
                if not one.closed:
                    return one
            if now < self._choose_after:
                return None
            self._choose_after = now + NOTHING
            held = list(self.holdings())
            self._chosen = self._choose(held, [1] * len(held), max(1, len(held) // PART), "open files")
            self._chosen_until = now + VALID
            if not self._chosen:
                return None
            self._choose_after = now

    def _choose(self, held: list[Holding], sizes: list[int], excess: int, what: str) -> list[Holding]:
        """Return which of these give way so that `excess` of their sizes is free, the first one last."""
        sums: dict[str, int] = {}
        weights: dict[str, int] = {}
        keys = []
        for one, size in zip(held, sizes, strict=True):
            key = _key(one)
            keys.append(key)
            sums[key] = sums.get(key, 0) + size
            if one.caller.local_only:
                weights[key] = PEER_WEIGHT
        share = level([(total, weights.get(key, 1)) for key, total in sums.items()], excess)
        over = {key: total - share * weights.get(key, 1) for key, total in sums.items()}
        over = {key: most for key, most in over.items() if most > 0}
        for key in over:
            self._tell(key, what, sums[key], share * weights.get(key, 1))
        order = [(_order(held[at]), at) for at in range(len(held)) if keys[at] in over]
        order.sort()
        chosen = []
        for _, at in order:
            if over[keys[at]] > 0:
                over[keys[at]] -= sizes[at]
                chosen.append(held[at])
        chosen.reverse()
        return chosen

    def _give_up(self, one: Holding) -> None:
        gave_way = self._entry(one.caller.host)
        gave_way.count += 1
        gave_way.last = time.time()
        one.give_up()

    def _entry(self, host: str) -> GaveWay:
        entry = self._gave_way.pop(host, None) or GaveWay()
        self._gave_way[host] = entry
        if len(self._gave_way) > MOST_KEPT:
            del self._gave_way[next(iter(self._gave_way))]
        return entry

    def _tell(self, key: str, what: str, held: int, share: int) -> None:
        entry = self._entry(key.partition(" ")[0])
        now = time.time()
        if now - entry.told >= TOLD:
            entry.told = now
            words = f"a caller holds more than its share of {what}; its newest connections are reset"
            log.warning(words, caller=key, held=held, share=share)

    # Memory

    def begin_stuck(self, caller: Caller, size: int) -> None:
        """Note that a direction of this caller's is stuck, which counts for so many bytes."""
        self.stuck += size
        self._stuck_of[caller.host] = self._stuck_of.get(caller.host, 0) + size
        if self.stuck > self.most_stuck and not self._relieving:
            self._relieving = True
            self._loop.call_soon(self._relieve)

    def end_stuck(self, caller: Caller, size: int) -> None:
        """Note that it moves again, or is closed."""
        self.stuck -= size
        left = self._stuck_of[caller.host] - size
        if left:
            self._stuck_of[caller.host] = left
        else:
            del self._stuck_of[caller.host]

    def is_over(self, caller: Caller) -> bool:
        """Whether this caller has more than its share of what stuck directions may hold, and there is no room left."""
        return self.stuck > self.room and self._stuck_of.get(caller.host, 0) * len(self._stuck_of) > self.room

    def _relieve(self) -> None:
        """Choose the newest stuck connections of those that hold most memory, and reset them."""
        excess = self.stuck - self.most_stuck
        held = [one for one in self.holdings() if one.stuck] if excess > 0 else []
        sizes = [one.stuck for one in held]
        self._reset(self._choose(held, sizes, excess + self.most_stuck // PART, "memory") if held else [])

    def _reset(self, chosen: list[Holding]) -> None:
        """Reset these, the last one first, in turns with traffic."""
        for _ in range(min(IN_A_TURN, len(chosen))):
            one = chosen.pop()
            if not one.closed:
                self._give_up(one)
        self._relieving = bool(chosen)
        if chosen:
            self._loop.call_soon(self._reset, chosen)

    # What is shown

    def stats(self) -> tuple[ShareStats, ...]:
        """Return what is known of callers that gave way, and of those that hold more memory than their share."""
        held: dict[str, int] = {}
        for one in self.holdings():
            held[one.caller.host] = held.get(one.caller.host, 0) + 1
        known = []
        for host in dict.fromkeys([*self._gave_way, *self._stuck_of]):
            gave_way = self._gave_way.get(host) or GaveWay()
            stuck = self._stuck_of.get(host, 0)
            if gave_way.count or (self.stuck > self.room and stuck * len(self._stuck_of) > self.room):
                known.append(
                    ShareStats(
                        caller=host, held=held.get(host, 0), stuck=stuck, given_up=gave_way.count, last=gave_way.last
                    )
                )
        return tuple(known)


def level(held: Iterable[tuple[int, int]], excess: int) -> int:
    """Return the highest level at which giving up what is above frees at least `excess`; 0 if nothing frees that much.

    `held` has for each caller what it holds, and of how many it has the share.
    """
    known = list(held)
    low, high = 0, max([total // weight for total, weight in known], default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum([max(0, total - middle * weight) for total, weight in known]) >= excess:
            low = middle
        else:
            high = middle - 1
    return low


def _key(one: Holding) -> str:
    """Return whose share this belongs to."""
    caller = one.caller
    return f"{caller.host} {one.destination}" if caller.local_only else str(caller.host)


def _order(one: Holding) -> tuple[int, float]:
    """Return what sorts those first that give way first: the newest, or of a peer's what carried least."""
    return (one.carried, one.opened) if one.caller.local_only else (0, -one.opened)


def _files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def _nothing() -> Iterable[Holding]:
    return ()
