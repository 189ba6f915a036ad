"""Which sessions stay, and which ones give way; test_listener.py has the datagrams that make them so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dataplane.access import Caller
from appliance.dataplane.holding import CalledHolding
from appliance.dataplane.shares import Shares
from appliance.dataplane.udp.places import (
    ANSWER_SECONDS,
    ANSWERED,
    ASKING,
    CHANCES,
    IDLE,
    KINDS,
    LASTING,
    PEER_SHARE,
    RETURNED,
    TALKING,
    TALKS,
    TICKS,
    TIMES,
    Placed,
    Places,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, OTHER, PEER = (
    Caller("192.0.2.1", local_only=False),
    Caller("192.0.2.2", local_only=False),
    Caller("192.0.2.3", local_only=True),
)
CALLERS = (ONE, OTHER, PEER)


class One:
    """A session."""

    def __init__(self, world: World, caller: Caller) -> None:
        self.world = world
        self.caller = caller
        self.ended = False
        self.place = Placed(CalledHolding(self.end, lambda: 0, brief=True), world.now)

    @property
    def standing(self) -> int:
        """How it stands."""
        return self.place.standing

    def end(self) -> None:
        """End, once only."""
        assert not self.ended
        self.ended = True
        self.world.shares.remove(self.place.holding)
        self.world.places.remove(self.place)

    def use(self) -> None:
        """Carry something."""
        self.place.quiet = 0
        self.place.bytes_in += 1


class World:
    """A listener's places and the clock."""

    def __init__(self, limit: int = 4, files: int = 1000) -> None:
        self.now = 1000.0
        self.shares = Shares(self, files=files)
        self.places = Places(self, self.shares, limit=limit, idle=IDLE)
        self.made: list[One] = []

    def time(self) -> float:
        """Stand for the loop's clock."""
        return self.now

    def call_soon(self, *_: object) -> None:
        """Nothing is stuck here."""
        raise AssertionError

    def open(self, caller: Caller = ONE, standing: int = ASKING) -> One:
        """Return a session that has come to stand so."""
        one = One(self, caller)
        self.shares.add(one.place.holding, caller, "web")
        self.places.add(one.place, caller)
        for step in range(1, standing + 1):
            one.use()
            self.places.move(one.place, step)
        self.made.append(one)
        return one

    def several(self, number: int, caller: Caller = ONE, standing: int = ASKING) -> list[One]:
        """Return so many."""
        return [self.open(caller, standing) for _ in range(number)]

    def left(self, caller: Caller | None = None) -> list[One]:
        """Return those that go on."""
        return [one for one in self.made if not one.ended and caller in (None, one.caller)]

    def pass_time(self, until: Callable[[], bool] = lambda: False, ticks: int = 1000) -> int:
        """Let ticks pass; return how many did."""
        for passed in range(ticks):
            if until():
                return passed
            self.now += self.places.tick
            for one in self.left():
                self.places.age(one.place)
        return ticks


@pytest.mark.parametrize(
    ("standing", "seconds"), [(ASKING, 180), (ANSWERED, 300), (RETURNED, 300), (TALKING, 300), (LASTING, 3600)]
)
def test_how_long_it_lives_in_silence(standing: int, seconds: int) -> None:
    """At least; RFC 4787 wants two minutes, and recommends five."""
    world = World()
    one = world.open(standing=standing)
    one.place.quiet = 1  # it was in use before the last tick, and so does not last
    ticks = world.pass_time(until=lambda: one.ended)
    assert seconds <= ticks * world.places.tick <= seconds + world.places.tick
    assert not world.places.callers


@pytest.mark.parametrize(("standing", "lasts"), [(ASKING, False), (ANSWERED, True), (TALKING, True)])
def test_what_goes_on_lasts(standing: int, *, lasts: bool) -> None:
    """Also where only one of both speaks on, once the backend has answered: a subscription is such a session."""
    world = World()
    one = world.open(standing=standing)
    for _ in range(3):
        one.use()
        world.pass_time(ticks=1)
    assert (one.standing == LASTING) == lasts


def test_a_question_just_before_a_tick_does_not_last() -> None:
    """It was used in the tick that ends, as are sessions that last; and is over nevertheless."""
    world = World()
    one = world.open(standing=ANSWERED)
    world.now += 0.1
    world.places.age(one.place)
    assert world.pass_time(until=lambda: one.ended) == 20
    assert one.standing == ANSWERED


def test_what_had_no_answer_goes_first() -> None:
    """If it is waited for no more; then what was answered, the oldest first; then what may be answered yet."""
    world = World(limit=6)
    answered = world.several(2, standing=ANSWERED)
    waited = world.several(2)
    world.now += ANSWER_SECONDS
    fresh = world.several(2)
    order = []
    for _ in range(6):
        before = world.left()
        world.open()
        order += [one for one in before if one.ended]
    assert order == [*waited, *answered, *fresh]
    assert world.places.evicted == 6


def test_no_number_of_questions_moves_a_conversation() -> None:
    """Of the same caller or of others, however they came to be; nor does any number of conversations a lasting one."""
    world = World()
    lasting = world.open(standing=LASTING)
    talking = [world.open(standing=TALKING), world.open(standing=RETURNED)]
    for caller in (ONE, OTHER, PEER):
        for standing in (ASKING, ANSWERED):
            world.several(100, caller, standing)
    assert not any(one.ended for one in (lasting, *talking))
    world.several(100, ONE, TALKING)
    assert not lasting.ended
    assert all(one.ended for one in talking)
    assert len(world.left()) <= 4 + 2 * 4 + 1


def test_of_conversations_those_go_first_that_returned_once() -> None:
    """Two questions from one port, as resolvers ask for two kinds of address, are hardly one."""
    world = World()
    talking = world.open(standing=TALKING)
    world.several(100, standing=RETURNED)
    assert not talking.ended


@pytest.mark.parametrize("standing", [ASKING, ANSWERED, TALKING, LASTING])
def test_what_is_used_stays(standing: int) -> None:
    """The one that has been silent longest goes, and not the oldest."""
    world = World(limit=8)
    used = world.open(standing=standing)
    for _ in range(100):
        used.use()
        world.open(standing=standing)
    assert not used.ended


@pytest.mark.parametrize("standing", [ASKING, ANSWERED, TALKING, LASTING])
def test_who_has_most_gives_way(standing: int) -> None:
    """One caller never moves another's that has fewer, whatever it opens; and gives way to it."""
    world = World(limit=8)
    modest = world.several(3, OTHER, standing)
    world.several(100, ONE, standing)
    assert not any(one.ended for one in modest)
    world.several(100, OTHER, standing)
    most = 8 * TIMES[0 if standing < RETURNED else TALKS]
    assert len(world.left(ONE)) == len(world.left(OTHER)) == most // 2


def test_a_peer_is_several_callers() -> None:
    """It may have PEER_SHARE times the sessions of a workload."""
    world = World(limit=10)
    world.several(100, PEER)
    world.several(100, ONE)
    world.several(100, PEER)
    assert (len(world.left(PEER)), len(world.left(ONE))) == (8, 2)
    assert len(world.left(PEER)) // PEER_SHARE == len(world.left(ONE))


def test_when_descriptors_are_scarce_a_callers_own_are_over_first() -> None:
    """One that was answered gives way for its next question: nothing of others, and no conversation."""
    world = World(files=100)
    kept = [*world.several(3, OTHER, TALKING), world.open(standing=TALKING)]
    over = world.open(standing=ANSWERED)
    asking = world.open()
    assert world.places.make_room(ONE, world.shares.mark)
    assert over.ended
    assert not any(one.ended for one in (*kept, asking))
    assert world.places.make_room(ONE, world.shares.mark), "now who holds most gives way"
    assert sum(one.ended for one in kept) == 2
    assert not asking.ended or kept[-1].ended is False


def test_what_only_asks_goes_first_when_descriptors_are_scarce() -> None:
    """Of the caller that holds most: its conversations stay while it has others."""
    world = World(files=100)
    talking = world.several(4, OTHER, TALKING)
    asking = world.several(4, OTHER)
    assert world.places.make_room(ONE, world.shares.mark)
    assert world.places.make_room(ONE, world.shares.mark)
    assert all(one.ended for one in asking)
    assert not any(one.ended for one in talking)


def test_a_place_costs_the_same_however_many_there_are() -> None:
    """What gives way is found without a look at all sessions, though all of them are in use."""
    world = World(limit=1000)
    for one in world.several(1000):
        one.use()
    world.open()
    assert world.places.evicted == 1
    assert sum(one.place.seen != 0 for one in world.made) <= CHANCES


STEP = st.tuples(st.sampled_from(["open", "up", "end", "use", "tick"]), st.sampled_from(CALLERS), st.integers(0, 30))


@given(st.lists(STEP, max_size=120))
def test_places_are_counted_whatever_happens(steps: list[tuple[str, Caller, int]]) -> None:
    """No kind has more than its places, everybody's are counted as they are, and nobody below the most gives way."""
    world = World(limit=3)
    for what, caller, number in steps:
        before = {each: _counts(world, each) for each in CALLERS}
        there = world.left()
        mine = world.left(caller)
        one = mine[number % len(mine)] if mine else None
        if what == "open" or one is None:
            world.open(caller)
        elif what == "up":
            world.places.move(one.place, min(one.standing + 1, LASTING))
        elif what == "end":
            one.end()
        elif what == "use":
            one.use()
        else:
            world.pass_time(ticks=number)
        counts = {each: _counts(world, each) for each in CALLERS}
        assert {host: own.counts for host, own in world.places.callers.items()} == {
            each.host: counts[each] for each in CALLERS if any(counts[each])
        }
        assert all(
            sum(count) <= 3 * times for count, times in zip(zip(*counts.values(), strict=True), TIMES, strict=True)
        )
        if what in ("open", "up"):
            gone = [other for other in there if other.ended and other.caller is not caller]
            assert all(
                _share(before, other.caller, KINDS[other.standing]) >= _share(before, caller, KINDS[other.standing])
                for other in gone
            )


def _share(counts: dict[Caller, list[int]], caller: Caller, kind: int) -> int:
    return counts[caller][kind] // (PEER_SHARE if caller.local_only else 1)


def _counts(world: World, caller: Caller) -> list[int]:
    kinds = [KINDS[one.standing] for one in world.left(caller)]
    return [kinds.count(kind) for kind in range(len(TIMES))]


def test_a_tick_is_short_beside_what_it_measures() -> None:
    """A session ends at most one tick late."""
    assert World().places.tick == IDLE / TICKS == 15
