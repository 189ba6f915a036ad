"""What each caller may hold of two things that all share: this process's file descriptors, and the host's memory.

Nobody is bounded while there is plenty. Beyond a mark the callers that hold most give way: what they opened last goes
first, until all that hold more than a level are down to it. Callers below that level notice nothing. Rules of this
file:

- A workload is one caller, by its key. A peer machine is not: its proxy speaks for many, and bounds each itself. Its
  connections to one destination count together, and their share is PEER_WEIGHT times as large. Those go first that
  carried least, and of these the oldest: idle ones that pile up, rather than those of callers that come and go.
- Each caller has a list of what it holds, newest first, and a count (holding.py). So nothing here looks at all
  connections. Datagram sessions that seem to have ended go before all else, the oldest first.
- The kernel gives out the lowest free descriptor (open(2)). So the first one at the mark says that all below are in
  use, whoever in this process has opened them. How many connections there were then is how many there may be: what is
  closed later leaves holes, which new descriptors fill. That costs two comparisons for each connection.
- What has been given up is closed when the batch of events ends. Until then accepting stops after each client.
- A direction is *stuck* while its reader does not take what was sent. What is sent to it meanwhile fills a pipe and the
  receive buffer: memory of the host, which no container's own limit counts.
"""

from __future__ import annotations

import os
import resource
import time
from typing import TYPE_CHECKING, Final

import structlog

from appliance.dataplane.holding import Holder
from appliance.model.stats import ShareStats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from appliance.dataplane.access import Caller
    from appliance.dataplane.holding import Holding

log = structlog.get_logger()

MARK: Final = 80
"""Percent of the descriptors that may be used before anybody is bounded."""
RESERVE = 2048
"""Descriptors that connections never take: for control plane, DNS (which takes 1,536 at most) and the admin socket."""
PEER_WEIGHT: Final = 4
"""A peer's connections to one destination are those of so many callers: several, though not known how many."""
AT_A_TIME: Final = 2
"""Connections given up for each that is accepted beyond the mark. They have at least as many descriptors."""
SLACK: Final = 16
"""The one that holds most gives way until it has 1 in SLACK less than the next one: a search looks at all callers. Once
there are 1 in SLACK fewer connections than when the mark was reached, it is not reached any more."""
SEARCH: Final = 0.1
"""Seconds until another search."""
NO_CAP: Final = 1 << 60
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
        self.held = 0
        """How many pairs, dials and sessions there are."""
        self.cap = NO_CAP
        """How many there were when the mark was last reached."""
        self._forget_cap_below = 0
        memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.room = memory // ROOM
        """Bytes that stuck directions may hold before anybody is bounded."""
        self.most_stuck = memory // MOST
        """Bytes that they may hold at all."""
        self.stuck = 0
        """Bytes that they count for."""
        self._holders: dict[str, Holder] = {}
        """By key: those that hold anything."""
        self._stuck_holders = 0
        self._greediest: Holder | None = None
        self._floor = 0
        """What it has left when another search is due, divided by its weight."""
        self._search_at = 0.0
        """When another one is due anyway, as others may hold more by then."""
        self._relieving = False
        self._gave_way: dict[str, GaveWay] = {}
        """By caller, the latest last."""

    def add(self, one: Holding, caller: Caller, destination: str) -> None:
        """Count what a caller has from now on."""
        key = f"{caller.host} {destination}" if caller.local_only else caller.host
        holder = self._holders.get(key)
        if holder is None:
            weight = PEER_WEIGHT if caller.local_only else 1
            holder = self._holders[key] = Holder(key, caller.host, weight)
        holder.add(one)
        self.held += 1

    def remove(self, one: Holding) -> None:
        """Count it no more. Nothing to do if it does not count."""
        holder = one.holder
        if holder is not None:
            holder.remove(one)
            if not holder.held:
                del self._holders[holder.key]
            self.held -= 1
            if self.held < self._forget_cap_below:
                self.cap = NO_CAP
                self._forget_cap_below = 0

    def keep(self, one: Holding) -> None:
        """Note that it has not ended soon after it began. Nothing to do if it does not count."""
        holder = one.holder
        if holder is not None:
            holder.keep(one)

    # Descriptors

    def is_crowded(self, fd: int) -> bool:
        """Whether somebody has to give way for a client with this descriptor."""
        if fd >= self.mark and self.held < self.cap:
            self.cap = self.held
            self._forget_cap_below = self.held - self.held // SLACK
        return fd >= self.mark or self.held >= self.cap

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

    def gives_way(self, host: str) -> bool:
        """Whether this workload is the one that gives way at present."""
        return self._greediest is not None and self._greediest.key == host

    def _next(self) -> Holding | None:
        """Return what gives way next; None if nobody has anything."""
        greediest = self._greediest
        now = time.monotonic()
        if greediest is None or greediest.held <= self._floor * greediest.weight or now >= self._search_at:
            greediest = self._greediest = self._search()
            self._search_at = now + SEARCH
        return None if greediest is None else greediest.next()

    def _search(self) -> Holder | None:
        """Find who holds most, and who comes next."""
        found: Holder | None = None
        most = second = -1
        for holder in self._holders.values():
            share = holder.held // holder.weight
            if share > most:
                second = most
                most = share
                found = holder
            elif share > second:
                second = share
        second = max(second, 0)
        self._floor = second - second // SLACK
        if found is not None:
            self._tell(found, "open files", found.held)
        return found

    def _give_up(self, one: Holding) -> None:
        holder = one.holder
        if holder is not None:
            gave_way = self._entry(holder.host)
            gave_way.count += 1
            gave_way.last = time.time()
            one.give_up()
            self.remove(one)

    def _entry(self, host: str) -> GaveWay:
        entry = self._gave_way.pop(host, None) or GaveWay()
        self._gave_way[host] = entry
        if len(self._gave_way) > MOST_KEPT:
            del self._gave_way[next(iter(self._gave_way))]
        return entry

    def _tell(self, holder: Holder, what: str, held: int) -> None:
        entry = self._entry(holder.host)
        now = time.time()
        if now - entry.told >= TOLD:
            entry.told = now
            words = f"a caller holds more than its share of {what}; its newest connections are reset"
            log.warning(words, caller=holder.key, held=held)

    # Memory

    def begin_stuck(self, one: Holding, size: int) -> None:
        """Note that a direction is stuck, which counts for so many bytes."""
        holder = one.holder
        if holder is None:
            return
        self.stuck += size
        if not holder.stuck:
            self._stuck_holders += 1
        holder.stuck += size
        if self.stuck > self.most_stuck and not self._relieving:
            self._relieving = True
            self._loop.call_soon(self._relieve)

    def end_stuck(self, one: Holding, size: int) -> None:
        """Note that it moves again, or is closed. It must count still."""
        holder = one.holder
        if holder is None:
            return
        self.stuck -= size
        holder.stuck -= size
        if not holder.stuck:
            self._stuck_holders -= 1

    def is_over(self, one: Holding) -> bool:
        """Whether its caller has more than its share of what stuck directions may hold, and there is no room left."""
        holder = one.holder
        return self.stuck > self.room and holder is not None and self._is_over(holder)

    def _is_over(self, holder: Holder) -> bool:
        return holder.stuck * self._stuck_holders > self.room * holder.weight

    def _relieve(self) -> None:
        """Choose the newest stuck connections of those that hold most memory, and reset them."""
        excess = self.stuck - self.most_stuck
        chosen: list[Holding] = []
        if excess > 0:
            held = [holder for holder in self._holders.values() if holder.stuck]
            share = level([(holder.stuck, holder.weight) for holder in held], excess + self.most_stuck // SLACK)
            for holder in held:
                over = holder.stuck - share * holder.weight
                if over > 0:
                    self._tell(holder, "memory", holder.stuck)
                one = holder.kept.newest
                while one is not None and over > 0:
                    if one.stuck:
                        over -= one.stuck
                        chosen.append(one)
                    one = one.older
        self._reset(chosen)

    def _reset(self, chosen: list[Holding]) -> None:
        """Reset these in turns with traffic."""
        for _ in range(min(IN_A_TURN, len(chosen))):
            self._give_up(chosen.pop())
        self._relieving = bool(chosen)
        if chosen:
            self._loop.call_soon(self._reset, chosen)

    # What is shown

    def stats(self) -> tuple[ShareStats, ...]:
        """Return what is known of callers that gave way, and of those that hold more memory than their share."""
        held: dict[str, int] = {}
        stuck: dict[str, int] = {}
        over = set()
        for holder in self._holders.values():
            held[holder.host] = held.get(holder.host, 0) + holder.held
            stuck[holder.host] = stuck.get(holder.host, 0) + holder.stuck
            if self.stuck > self.room and self._is_over(holder):
                over.add(holder.host)
        known = []
        for host in dict.fromkeys([*self._gave_way, *over]):
            gave_way = self._gave_way.get(host) or GaveWay()
            if not gave_way.count and host not in over:
                continue
            known.append(
                ShareStats(
                    caller=host,
                    held=held.get(host, 0),
                    stuck=stuck.get(host, 0),
                    given_up=gave_way.count,
                    last=gave_way.last,
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


def _files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
