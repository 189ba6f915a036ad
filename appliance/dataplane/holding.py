"""What one caller holds, in the order in which it gives way; shares.py says when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CHANCES: Final = 64
"""Most connections of a peer that are passed over for one that is given up, because they were used meanwhile."""


class Holding:
    """What a caller has: a pair, a dial under way, or a session; the base of these."""

    __slots__ = ("brief", "holder", "newer", "older", "seen")

    def __init__(self) -> None:
        self.holder: Holder | None = None
        """Whose it is; None before it counts and after it has ended."""
        self.newer: Holding | None = None
        self.older: Holding | None = None
        """Its neighbours in a list of its holder."""
        self.brief = False
        """Whether it probably has ended, though nobody says so: a datagram that was answered, and nothing since."""
        self.seen = 0
        """What it had carried when it was last looked at."""

    @property
    def carried(self) -> int:
        """Bytes in both directions so far."""
        return 0

    @property
    def stuck(self) -> int:
        """Bytes of memory that its stuck directions count for."""
        return 0

    def give_up(self) -> None:
        """End it now, because its caller holds more than its share."""
        raise NotImplementedError


class CalledHolding(Holding):
    """One that stands for something which has another base: a class has one native base only."""

    __slots__ = ("_carried", "_end", "_stuck")

    def __init__(
        self, end: Callable[[], None], carried: Callable[[], int], *, stuck: int = 0, brief: bool = False
    ) -> None:
        super().__init__()
        self._end: Callable[[], None] | None = end
        self._carried: Callable[[], int] | None = carried
        self._stuck = stuck
        self.brief = brief

    @property
    def carried(self) -> int:
        """Bytes in both directions so far."""
        return 0 if self._carried is None else self._carried()

    @property
    def stuck(self) -> int:
        """Bytes of memory that it counts for."""
        return self._stuck

    def give_up(self) -> None:
        """End it now, because its caller holds more than its share."""
        if self._end is not None:
            self._end()

    def release(self) -> None:
        """Let go of what it stands for: without a circle that is freed at once."""
        self._end = self._carried = None


class HoldingList:
    """Holdings in the order in which they came, linked."""

    __slots__ = ("newest", "oldest")

    def __init__(self) -> None:
        self.newest: Holding | None = None
        self.oldest: Holding | None = None

    def add(self, one: Holding) -> None:
        """Put it first."""
        one.older = self.newest
        if self.newest is None:
            self.oldest = one
        else:
            self.newest.newer = one
        self.newest = one

    def remove(self, one: Holding) -> None:
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


class Holder:
    """What one caller holds; or a peer, of one destination."""

    __slots__ = ("brief", "held", "host", "kept", "key", "stuck", "weight")

    def __init__(self, key: str, host: str, weight: int) -> None:
        self.key = key
        self.host = host
        self.weight = weight
        """Of how many callers it has the share."""
        self.held = 0
        self.stuck = 0
        """Bytes of memory that its stuck directions count for."""
        self.kept = HoldingList()
        self.brief = HoldingList()
        """Those that have probably ended, and all others."""

    def add(self, one: Holding) -> None:
        """Put it first in its list."""
        one.holder = self
        self.held += 1
        (self.brief if one.brief else self.kept).add(one)

    def remove(self, one: Holding) -> None:
        """Take it out of its list."""
        (self.brief if one.brief else self.kept).remove(one)
        one.holder = None
        self.held -= 1

    def keep(self, one: Holding) -> None:
        """Count it among those that go on."""
        if one.brief:
            self.brief.remove(one)
            one.brief = False
            self.kept.add(one)

    def next(self) -> Holding | None:
        """Return what gives way next.

        That is the oldest that has probably ended; then the newest, or of a peer's the oldest that was not used since
        the last look.
        """
        if self.brief.oldest is not None:
            return self.brief.oldest
        if self.weight == 1:
            return self.kept.newest
        for _ in range(CHANCES):
            one = self.kept.oldest
            if one is None or one.carried == one.seen:
                break
            one.seen = one.carried
            self.kept.remove(one)
            self.kept.add(one)
        return self.kept.oldest
