"""Which sessions of a listener stay, for how long, and which ones give way when there are too many.

UDP has no end, so a session shows only by what it has carried whether it is over. Rules of this file:

- A session is *asking* until its backend answers, then *answered*. It has *returned* once its client speaks after an
  answer, and is *talking* when the client does so again. It is *lasting* once the backend has spoken and one of both
  does so SETTLED seconds after it began.
- Without a datagram in either direction it ends after LIVES: never, as long as it carries anything.
- There are places of three kinds: for the brief (asking, answered), for those that return or talk, and for lasting
  ones. A session takes a place of one kind only from another of the same kind. So no number of questions moves a
  conversation.
- When all places of a kind are taken, the caller with most of them gives way, and nobody else. A peer machine speaks
  for several callers, so it may have PEER_SHARE times as many.
- Of its brief sessions those go first that have had no answer for ANSWER_SECONDS, then those that were answered, then
  those that may still be. Of the second kind those that only returned go first.
- Of several that stand alike the one goes that has been silent longest: it stands first in its queue, and has carried
  nothing since it was last looked at.
- Nothing here looks at all sessions or callers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.dataplane.udp.batch import BatchReader

if TYPE_CHECKING:
    import asyncio

    from appliance.dataplane.access import Caller
    from appliance.dataplane.holding import CalledHolding
    from appliance.dataplane.shares import Shares

IDLE = 180.0
"""Seconds without a datagram in either direction after which a session ends that never had an answer."""

ASKING: Final = 0
ANSWERED: Final = 1
RETURNED: Final = 2
TALKING: Final = 3
LASTING: Final = 4
"""How a session stands; it only goes up."""

BRIEF: Final = 0
TALKS: Final = 1
LONG: Final = 2
KINDS: Final = (BRIEF, BRIEF, TALKS, TALKS, LONG)
"""The kind of place, by how a session stands."""
TIMES: Final = (1, 2, 2)
"""How many times the limit of brief sessions there are places, by kind."""

TICKS: Final = 12
"""IDLE is checked this often in its length."""
LIVES: Final = (TICKS, 20, 20, 20, 240)
"""Ticks without a datagram in either direction after which a session ends, by how it stands. With IDLE a tick is
15 s, so these are 3 minutes without any answer (RFC 4787, REQ-5, wants 2 at least), 5 minutes with one (it recommends
that), and 1 hour for sessions that last: without a proxy there is no limit."""
SETTLED: Final = 2
"""Ticks after which a session that was used in the last one is lasting. After one tick that might be its beginning."""
ANSWER_SECONDS: Final = 5.0
"""Who had no answer for so long asks again, if at all (resolv.conf(5), timeout)."""
CHANCES: Final = 16
"""Most sessions in use that are passed over when one has to go."""
PEER_SHARE: Final = 4
"""A peer machine speaks for several callers, it is not known how many: it may have so many times the sessions."""


class Placed(BatchReader):
    """What has a place: the base of a session."""

    __slots__ = ("bytes_in", "bytes_out", "holding", "newer", "older", "own", "quiet", "seen", "standing", "started")

    def __init__(self, holding: CalledHolding, started: float) -> None:
        super().__init__()
        self.holding = holding
        """What counts against its caller's share."""
        self.started = started
        """In seconds of the loop's clock."""
        self.quiet = 0
        """Ticks since the last datagram in either direction."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.standing: int = ASKING
        self.own: CallersSessions | None = None
        """Those of its caller; None without a place."""
        self.newer: Placed | None = None
        self.older: Placed | None = None
        """Its neighbours in its queue."""
        self.seen = 0
        """Bytes that it had carried when it was put at the end of its queue."""

    def end(self) -> None:
        """End now."""
        self.holding.give_up()


class Queue:
    """Sessions of one caller that stand alike, linked in the order in which they came."""

    __slots__ = ("newest", "oldest")

    def __init__(self) -> None:
        self.newest: Placed | None = None
        self.oldest: Placed | None = None

    def add(self, one: Placed) -> None:
        """Put it at the end."""
        one.seen = one.bytes_in + one.bytes_out
        one.older = self.newest
        if self.newest is None:
            self.oldest = one
        else:
            self.newest.newer = one
        self.newest = one

    def remove(self, one: Placed) -> None:
        """Take it out."""
        newer, older = one.newer, one.older
        if newer is None:
            self.newest = older
        else:
            newer.older = older
        if older is None:
            self.oldest = newer
        else:
            older.newer = newer
        one.newer = one.older = None

    def idlest(self) -> Placed | None:
        """Return the one that has been silent longest; None if there is none.

        Those that were used since go to the end, at most CHANCES of them.
        """
        for _ in range(CHANCES):
            one = self.oldest
            if one is None or one.bytes_in + one.bytes_out == one.seen:
                return one
            self.remove(one)
            self.add(one)
        return self.oldest


class CallersSessions:
    """One caller's sessions: how many of each kind, and by how they stand."""

    __slots__ = ("counts", "host", "queues", "weight")

    def __init__(self, caller: Caller) -> None:
        self.host = caller.host
        self.weight = PEER_SHARE if caller.local_only else 1
        """Of how many callers it may have the sessions, as long as it has any."""
        self.counts = [0] * len(TIMES)
        self.queues = [Queue() for _ in KINDS]

    def spent(self, now: float) -> Placed | None:
        """Return the brief session that is probably over and goes first; None if there is none."""
        one = self.queues[ASKING].idlest()
        if one is None or now - one.started < ANSWER_SECONDS:
            return self.queues[ANSWERED].idlest()
        return one

    def next(self, kind: int, now: float) -> Placed | None:
        """Return the session of a kind that goes first; None if there is none."""
        if kind == BRIEF:
            return self.spent(now) or self.queues[ASKING].oldest
        if kind == TALKS:
            return self.queues[RETURNED].idlest() or self.queues[TALKING].idlest()
        return self.queues[LASTING].idlest()


class PlacePool:
    """The places of one kind, and who has most of them."""

    __slots__ = ("_by_share", "_kind", "_most", "limit", "taken")

    def __init__(self, kind: int, limit: int) -> None:
        self._kind = kind
        self.limit = limit
        self.taken = 0
        self._by_share: list[dict[str, CallersSessions]] = [{}]
        """Those that have any, by how many they have divided by their weight."""
        self._most = 0
        """The last of these that has anybody."""

    def count(self, own: CallersSessions, change: int) -> None:
        """Note that a caller has one more or one less."""
        count = own.counts[self._kind]
        if count:
            del self._by_share[count // own.weight][own.host]
        self.taken += change
        count += change
        own.counts[self._kind] = count
        if count:
            share = count // own.weight
            if share == len(self._by_share):
                self._by_share.append({})
            self._by_share[share][own.host] = own
            self._most = max(self._most, share)
        while self._most and not self._by_share[self._most]:
            self._most -= 1

    def who_gives_way(self, asking: CallersSessions) -> CallersSessions:
        """Return a caller with most; that is the one that asks, if it has as many. There must be one."""
        most = self._by_share[self._most]
        return asking if asking.host in most else next(iter(most.values()))


class Places:
    """The places of one listener."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shares: Shares, *, limit: int, idle: float) -> None:
        """`limit` is how many brief sessions there may be, `idle` how many seconds one stays without any answer."""
        self._loop = loop
        self._shares = shares
        self._pools = [PlacePool(kind, times * limit) for kind, times in enumerate(TIMES)]
        self.tick = idle / TICKS
        """Seconds between two calls of `age` for each session."""
        self.evicted = 0
        """Sessions ended early to make room for others."""
        self.callers: dict[str, CallersSessions] = {}
        """Those that have a session."""

    def add(self, one: Placed, caller: Caller) -> None:
        """Give a new session a place."""
        own = self._of(caller)
        self._make_room_for(own, BRIEF)
        self.callers[own.host] = own
        one.own = own
        own.queues[one.standing].add(one)
        self._pools[BRIEF].count(own, 1)

    def move(self, one: Placed, standing: int) -> None:
        """Give it the place that it needs, as it stands otherwise now. Nothing to do if it has none."""
        own = one.own
        if own is None:
            return
        former, kind = KINDS[one.standing], KINDS[standing]
        if kind != former:
            self._make_room_for(own, kind)
            self._shares.keep(one.holding)
            self._pools[former].count(own, -1)
            self._pools[kind].count(own, 1)
        own.queues[one.standing].remove(one)
        one.standing = standing
        own.queues[standing].add(one)

    def remove(self, one: Placed) -> None:
        """Take its place away. Nothing to do if it has none."""
        own = one.own
        if own is None:
            return
        one.own = None
        own.queues[one.standing].remove(one)
        self._pools[KINDS[one.standing]].count(own, -1)
        if not any(own.counts):
            del self.callers[own.host]

    def age(self, one: Placed) -> None:
        """Note that a tick has passed, and end it if it was silent for too long."""
        if one.own is None:
            return  # it gave way to another one in this tick
        lasts = not one.quiet and self._loop.time() - one.started >= SETTLED * self.tick
        if lasts and ANSWERED <= one.standing < LASTING:
            self.move(one, LASTING)
        one.quiet += 1
        if one.quiet > LIVES[one.standing]:
            one.end()

    def make_room(self, caller: Caller, fd: int) -> bool:
        """End a session for a caller's new one while descriptors are scarce; return whether it may have this one.

        That is one of its own, if one is probably over; only otherwise somebody gives way as shares.py says.
        """
        spent = self._of(caller).spent(self._loop.time())
        if spent is None:
            return self._shares.make_room(fd)
        self._evict(spent)
        return fd < self._shares.last

    def _of(self, caller: Caller) -> CallersSessions:
        return self.callers.get(caller.host) or CallersSessions(caller)

    def _make_room_for(self, own: CallersSessions, kind: int) -> None:
        places = self._pools[kind]
        if places.taken >= places.limit:
            one = places.who_gives_way(own).next(kind, self._loop.time())
            if one is not None:
                self._evict(one)

    def _evict(self, one: Placed) -> None:
        self.evicted += 1
        one.end()
