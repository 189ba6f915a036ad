"""Blocking queries by the book, and never too many. The clock is virtual; Consul is played by functions."""

from __future__ import annotations

import itertools

import trio
import trio.testing
from together import run_together

from appliance.drivers.consul.api import RETRY, WAIT
from appliance.drivers.consul.staleness import Staleness
from appliance.drivers.consul.watch import Queries, ServiceWatch
from appliance.errors import RetryError


def scripted(*answers, wait=WAIT):
    """A fetch that gives these answers in turn and then waits for ever; `asked` has the indices.

    A query that has nothing new ends after `wait` seconds, others after one.
    """
    asked = []

    async def fetch(index):
        asked.append(index)
        if len(asked) > len(answers):
            await trio.sleep_forever()
        answer = answers[len(asked) - 1]
        await trio.sleep(wait if isinstance(answer, tuple) and answer[0] == index else 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    fetch.asked = asked
    return fetch


def followed(fetch, seconds=100.0, went_back=lambda _: None):
    """Follow a query for some virtual seconds; return the values taken, and the staleness of what was held."""
    values = []
    staleness = Staleness(lambda: 1000.0 + trio.current_time(), lambda: None)
    queries = Queries(staleness, went_back)

    async def took(value):
        values.append(value)

    async def main():
        with trio.move_on_after(seconds):
            await queries.follow("q", fetch, took)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return values, staleness


def test_index_is_handed_back():
    """Each query waits for a change after the last one seen; a timeout of the wait is no change."""
    fetch = scripted((5, "a"), (5, "a"), (7, "b"))
    values, _ = followed(fetch)
    assert values == ["a", "b"]
    assert fetch.asked == [0, 5, 5, 7]


def test_index_that_goes_backwards():
    """Everything is read anew from index 0, as after a restore."""
    fetch = scripted((50, "a"), (3, "ignored"), (3, "ignored"), (3, "b"))
    told = []
    values, _ = followed(fetch, went_back=told.append)
    assert values == ["a", "b"]
    assert fetch.asked == [0, 50, 0, 0, 3]
    assert told == [False, True]


def test_index_that_is_lower_behind_a_failure():
    """Servers that have just started may be behind for a moment: that is no sign of older data."""
    told = []
    values, _ = followed(scripted((50, "a"), RetryError("gone"), (3, "ignored"), (51, "b")), went_back=told.append)
    assert values == ["a", "b"]
    assert told == [False]
    told.clear()
    followed(scripted((50, "a"), RetryError("gone"), (3, "ignored"), (3, "b")), went_back=told.append)
    assert told == [False, True], "unless it stays so"


def test_query_that_is_broken_off():
    """A query that ends early with nothing new is no timeout: what is there is read at once, for it may be older."""
    fetch = scripted((50, "a"), (50, "a"), (3, "ignored"), (3, "ignored"), (3, "b"), wait=1)
    told = []
    values, _ = followed(fetch, went_back=told.append)
    assert values == ["a", "b"]
    assert fetch.asked == [0, 50, 0, 0, 0, 3]
    assert told == [False, True]


def test_index_zero():
    """An index of 0 would make a query return at once for ever: 1 is the least."""
    fetch = scripted((0, "a"), (1, "a"))
    values, _ = followed(fetch)
    assert values == ["a"]
    assert fetch.asked == [0, 1, 1]


def test_failure_is_held_and_begins_anew():
    """A failure is held with its cause, tried again after a pause, and over at the first answer."""
    fetch = scripted((5, "a"), RetryError("gone"), RetryError("still"), (6, "b"))
    values, staleness = followed(fetch)
    assert values == ["a", "b"]
    assert fetch.asked == [0, 5, 0, 0, 6]
    assert staleness.since is None
    _, staleness = followed(scripted((5, "a"), RetryError("gone")), seconds=2.1)
    assert staleness.since == 1002.0
    assert staleness.why == "gone"


def test_nothing_is_held_for_a_query_that_nobody_wants_any_more():
    """A query that failed last and is then given up does not leave the whole registry held for ever."""
    staleness = Staleness(trio.current_time, lambda: None)
    wanted = [True]

    async def fetch(_):
        wanted.clear()
        raise RetryError("no leader")

    async def took(_):
        pass

    trio.run(
        lambda: Queries(staleness).follow("q", fetch, took, wanted=lambda: bool(wanted)),
        clock=trio.testing.MockClock(autojump_threshold=0),
    )
    assert staleness.since is None


def test_failures_back_off():
    """Many failures in a row are tried again ever more slowly, but at least every few seconds."""

    async def fetch(_):
        times.append(trio.current_time())
        raise RetryError("down")

    times = []
    followed(fetch, seconds=60)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert all(RETRY.after(n) / 2 <= pause <= RETRY.after(n) for n, pause in enumerate(pauses, start=1))
    assert len(times) > 60 / RETRY[-1]


def test_a_value_that_cannot_be_taken_counts_as_failure():
    """When what was answered cannot be confirmed, the query begins anew."""
    tries = []

    async def took(value):
        tries.append(value)
        if len(tries) == 1:
            raise RetryError("not confirmed")

    async def main():
        with trio.move_on_after(50):
            await Queries(Staleness(trio.current_time, lambda: None)).follow("q", fetch, took)

    fetch = scripted((5, "a"), (5, "a"))
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert tries == ["a", "a"]
    assert fetch.asked == [0, 0, 5]


def test_queries_that_return_at_once_are_slowed_down():
    """A value that changes all the time costs about one query a second, not as many as fit."""
    count = 0

    async def fetch(_):
        nonlocal count
        count += 1
        return count, count

    values, _ = followed(fetch, seconds=100)
    assert 90 < len(values) < 120


class FakeConsul:
    """Services that never change; counts the queries that wait, as Consul would: also those given up."""

    def __init__(self):
        self.waiting = 0
        self.most = 0
        self.reads = []
        self.catalogue = 1
        self.changed = trio.Event()

    async def health(self, service, index):
        self.reads.append(service)
        if index == 0:
            return 5, [service]
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await trio.sleep(30)
        except trio.Cancelled:
            self.waiting += 1000  # it would keep its place
            raise
        self.waiting -= 1
        return 5, [service]

    async def index(self, index):
        if index == self.catalogue:
            with trio.move_on_after(30):
                await self.changed.wait()
        return self.catalogue


def interested(script, direct=4):
    """Run interests under a script; return what was taken and the fake."""
    taken = {}
    fake = FakeConsul()

    async def took(service, entries):
        taken[service] = entries

    async def main():
        queries = Queries(Staleness(trio.current_time, lambda: None))
        interests = ServiceWatch(queries, fetch=fake.health, fetch_catalogue=fake.index, took=took, direct=direct)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, interests.parts)
            await script(interests, fake, taken)
            fake.most_open = fake.most
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return taken, fake


def test_many_services_few_queries():
    """However many services are of interest, all are read, and only so many queries wait."""

    async def script(interests, fake, taken):
        interests.watch([f"s{n}" for n in range(100)])
        await trio.sleep(100)
        assert len(taken) == 100
        assert fake.most == 4
        fake.reads.clear()
        await trio.sleep(60)
        assert len(fake.reads) <= 4 * 2 + 4  # an idle appliance asks next to nothing

    interested(script)


def test_the_rest_is_read_when_the_catalogue_changes():
    """Services without a query of their own follow changes of the catalogue; new ones are read at once."""

    async def script(interests, fake, taken):
        interests.watch([f"s{n}" for n in range(8)])
        await trio.sleep(10)
        taken.clear()
        fake.catalogue = 2
        fake.changed.set()
        await trio.sleep(5)
        assert len(taken) == 4
        fake.changed = trio.Event()
        await trio.sleep(40)
        taken.clear()
        interests.watch([f"s{n}" for n in range(9)])
        await trio.sleep(5)
        assert set(taken) == {"s8"}

    interested(script)


def test_new_services_are_read_one_after_the_other():
    """However often the services of interest change while Consul is slow, one query at a time reads the new ones."""

    async def script(interests, fake, taken):
        names = [f"s{n}" for n in range(8)]
        interests.watch(names)
        await trio.sleep(10)
        reading, most = 0, 0
        health = fake.health

        async def slow(service, index):
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            await trio.sleep(1)
            reading -= 1
            return await health(service, index)

        interests._fetch = slow
        for number in range(8, 20):
            names.append(f"s{number}")
            interests.watch(names)
            await trio.sleep(0.1)
        await trio.sleep(14)
        assert most == 1
        assert {f"s{n}" for n in range(8, 20)} <= taken.keys()

    interested(script)


def test_queries_that_are_no_longer_wanted_are_waited_for():
    """A query keeps its place until its wait ends, so it is not given up, and its place not given away before."""

    async def script(interests, fake, taken):
        interests.watch(["a", "b", "c", "d"])
        await trio.sleep(10)
        interests.watch(["e", "f", "g", "h"])
        await trio.sleep(10)
        assert fake.waiting == 4
        assert set("efgh") <= taken.keys()
        await trio.sleep(60)
        assert fake.waiting == 4
        assert fake.most == 4
        assert set(fake.reads[-4:]) == set("efgh")

    interested(script)


def test_a_service_that_nobody_wants_is_not_taken():
    """An answer that comes after the interest ended is dropped."""

    async def script(interests, fake, taken):
        interests.watch(["a"])
        await trio.sleep(10)
        interests.watch([])
        taken.clear()
        await trio.sleep(100)
        assert taken == {}
        assert fake.waiting == 0

    interested(script)


def test_any_error_is_a_passing_one():
    """Whatever is wrong with an answer, what was known is held, and the query is made again."""
    fetch = scripted((5, "a"), ZeroDivisionError("\x1b[2J"), KeyError("Service"), (7, "b"))
    values, staleness = followed(fetch)
    assert values == ["a", "b"]
    assert not staleness.held
