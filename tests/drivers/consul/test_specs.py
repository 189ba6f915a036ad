"""Specs and tombstones in Consul: the later change wins, and nothing ends without a tombstone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from foreign import EVIL, check_shown

from appliance.drivers.consul.codec import StoredSpec, dump_spec, parse_spec
from appliance.drivers.consul.specs import LIFE, TRIES, Specs, _parsed
from appliance.errors import HostError, RetryError
from appliance.model.spec import Container, Service
from tests.drivers.fakekeys import FakeKeys

SPEC = Service(name="web", containers=(Container(name="web", image="x"),))
KEY = "specs/web"


class World:
    """Specs over fake keys, at a time that stands still."""

    def __init__(self):
        self.keys = FakeKeys()
        self.now = 1000.0
        self.changes = 0
        self.specs = Specs(self.keys, lambda: self.now, self._changed)

    def _changed(self):
        self.changes += 1

    def stores(self, service, changed):
        """Somebody else writes a spec or tombstone."""
        self.keys.set(KEY, dump_spec(StoredSpec(service=service, changed=changed)))

    def knows(self, service, changed, name="web"):
        """Make a spec or tombstone known here."""
        specs, tombstones = ({}, {name: changed}) if service is None else ({name: service}, {})
        self.specs.restore(specs, tombstones, {**self.specs.times, name: changed})

    def take(self):
        """What is in Consul arrives."""

        async def main():
            await self.specs.took((await self.keys.values("specs/"))[1])

        trio.run(main)

    @property
    def stored(self):
        """What is in Consul."""
        found = self.keys.keys.get(KEY)
        return found and found[0]


@pytest.fixture
def world() -> World:
    """An empty world."""
    return World()


@pytest.mark.parametrize(
    ("here", "there", "winner"),
    [
        (None, 5.0, "there"),
        (5.0, None, "here"),
        (5.0, 6.0, "there"),
        (6.0, 5.0, "here"),
    ],
)
@pytest.mark.parametrize("removed", [False, True])
def test_the_later_change_wins(world, here, there, winner, removed):
    """Of two versions the later one ends up in both places, whether it is a spec or a tombstone."""
    theirs, mine = (None if removed else replace(SPEC, count=2)), SPEC
    if there is not None:
        world.stores(theirs, there)
    if here is not None:
        world.knows(mine, here)
    world.take()
    expected = (
        StoredSpec(service=theirs, changed=there) if winner == "there" else StoredSpec(service=mine, changed=here)
    )
    assert replace(world.specs.known["web"], index=0) == expected
    assert world.stored == dump_spec(expected)
    assert world.specs.unsent == set()


def test_a_deleted_key_is_no_removal(world):
    """Somebody who deletes a spec by hand, or a Consul that has lost it, gets it back."""
    world.stores(SPEC, 5.0)
    world.take()
    world.keys.keys.clear()
    world.take()
    assert world.stored is not None
    assert world.specs.known["web"].service == SPEC


def test_old_tombstones_go(world):
    """A tombstone that has done its work is removed, here and there, once changes are that much later."""
    world.stores(None, 5.0)
    world.keys.set("specs/later", dump_spec(StoredSpec(service=replace(SPEC, name="later"), changed=LIFE + 6.0)))
    world.take()
    assert world.stored is None
    assert set(world.specs.known) == {"later"}
    world.knows(None, 5.0)
    world.take()
    assert set(world.specs.known) == {"later"}


@pytest.mark.parametrize("now", [0.0, 9e9])
def test_no_clock_decides_that_a_tombstone_is_old(world, now):
    """A machine whose clock is wrong does not remove what all others put back, again and again."""
    world.now = now
    world.stores(None, 1e9)
    world.take()
    assert world.stored is not None
    assert world.specs.known["web"].service is None


@pytest.mark.parametrize("there", [SPEC, None])
@pytest.mark.parametrize("here", [replace(SPEC, count=9), None])
def test_what_another_registry_kept_changes_nothing_in_consul(world, here, there):
    """A tombstone or spec that the embedded store kept, however late, yields to what Consul has."""
    world.stores(there, 5.0)
    before = world.stored
    world.knows(here, 900.0)
    world.specs.disown()
    world.take()
    assert world.stored == before
    assert world.specs.known["web"].service == there


def test_what_another_registry_kept_and_consul_does_not_know(world):
    """Services that only a joining machine has are put into Consul, its tombstones are not; the first counts."""
    world.knows(SPEC, 900.0)
    world.knows(None, 900.0, "gone")
    world.specs.disown()
    world.take()
    assert set(world.keys.keys) == {KEY}
    assert world.specs.known == {"web": StoredSpec(service=SPEC, changed=0.0)}
    before = world.stored
    world.knows(replace(SPEC, count=9), 950.0)
    world.specs.disown()
    world.take()
    assert world.stored == before


def test_what_is_changed_before_the_first_contact(world):
    """A deploy while Consul is away is meant for it, unlike what was there before."""
    world.knows(SPEC, 900.0)
    world.specs.disown()
    world.keys.down = True
    trio.run(world.specs.put, "web", replace(SPEC, count=3))
    world.keys.down = False
    world.stores(SPEC, 5.0)
    world.specs.disown()
    world.take()
    assert world.specs.known["web"].service.count == 3
    assert world.stored == dump_spec(world.specs.known["web"])


def test_somebody_else_deploys_at_the_same_time(world):
    """A change in between is not overwritten unseen: ours comes after it."""
    world.stores(SPEC, 5.0)
    world.keys.meddler = lambda: world.stores(replace(SPEC, count=7), 2000.0)
    trio.run(world.specs.put, "web", replace(SPEC, count=8))
    assert world.specs.known["web"].service.count == 8
    assert world.specs.known["web"].changed > 2000.0


def test_endless_quarrel(world):
    """When others never stop changing it, that is said, and nothing is taken as deployed."""

    def meddle():
        count[0] += 1
        world.stores(replace(SPEC, count=count[0]), 1.0 * count[0])
        world.keys.meddler = meddle

    count = [0]
    world.keys.meddler = meddle
    with pytest.raises(RetryError, match="changed by others at the same time"):
        trio.run(world.specs.put, "web", SPEC)
    assert count == [TRIES]


def test_deploy_without_consul(world):
    """It takes effect here, is told as waiting, and is sent when Consul is back."""
    world.keys.down = True
    trio.run(world.specs.put, "web", SPEC)
    assert world.specs.known["web"].service == SPEC
    assert world.specs.unsent == {"web"}

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.specs.resend)
            await trio.sleep(10)
            assert world.stored is None
            world.keys.down = False
            await trio.sleep(10)
            assert world.stored is not None
            assert world.specs.unsent == set()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_successor_that_comes_before_the_answer(world):
    """What somebody writes right after us, and the watch tells before our own call returns, is not forgotten."""
    put = world.keys.put

    async def overtaken(key, value, *, cas):
        done = await put(key, value, cas=cas)
        world.stores(replace(SPEC, count=7), 2000.0)
        await world.specs.took((await world.keys.values("specs/"))[1])
        return done

    world.keys.put = overtaken
    trio.run(world.specs.put, "web", SPEC)
    assert world.specs.known["web"].service.count == 7


def test_refusal_is_not_absence(world):
    """A token that may not write is an error at once, and nothing is deployed."""
    world.keys.refuses = True
    with pytest.raises(RetryError):
        trio.run(world.specs.put, "web", SPEC)
    assert world.specs.known == {}


def test_foreign_keys(world):
    """What is not ours is neither used nor overwritten, and what is known of that name stays."""
    world.keys.set(KEY, b'{"schema": 99, "changed": 1}')
    world.knows(SPEC, 5.0)
    world.take()
    assert world.stored == b'{"schema": 99, "changed": 1}'
    assert world.specs.known["web"].service == SPEC
    assert "newer meshbox" in world.specs.foreign["web"]
    with pytest.raises(HostError):
        trio.run(world.specs.put, "web", SPEC)
    world.stores(replace(SPEC, count=2), 6.0)
    world.take()
    assert world.specs.foreign == {}
    assert world.specs.known["web"].service.count == 2


def test_keys_in_a_folder_below(world):
    """A key deeper down is nobody's spec, whatever its last part is called."""
    world.knows(SPEC, 5.0)
    world.keys.set("specs/x/web", dump_spec(StoredSpec(service=replace(SPEC, count=9), changed=9.0)))
    world.take()
    assert world.specs.known["web"].service == SPEC
    assert "meshbox/specs/x/web" in world.specs.foreign["x/web"]
    assert world.stored is not None


def test_clocks(world):
    """A machine whose clock is behind still makes the later change."""
    world.stores(SPEC, 9e9)
    world.take()
    trio.run(world.specs.put, "web", None)
    assert world.specs.known["web"].changed > 9e9
    world.take()
    assert world.specs.known["web"].service is None


def test_what_was_known_before_the_start(world):
    """Specs and tombstones come back with their times; those without one do not come from this Consul."""
    world.specs.restore({"web": SPEC, "new": SPEC}, {"gone": 7.0, "old": 8.0}, {"web": 5.0, "gone": 6.0})
    assert world.specs.known == {
        "web": StoredSpec(service=SPEC, changed=5.0),
        "new": StoredSpec(service=SPEC, changed=0.0),
        "gone": StoredSpec(service=None, changed=6.0),
        "old": StoredSpec(service=None, changed=8.0),
    }
    assert world.specs.disowned == {"new", "old"}
    assert world.specs.times == {"web": 5.0, "gone": 6.0}
    assert world.specs.deployed.keys() == {"web", "new"}
    assert world.specs.tombstones == {"gone": 6.0, "old": 8.0}
    trio.run(world.specs.put, "new", SPEC)
    assert world.specs.times["new"] == 1000.0


def test_only_what_is_deployed_is_removed(world):
    """What is unknown, or removed already, is left as it is, and that is told."""
    assert not trio.run(world.specs.remove, "web")
    world.stores(SPEC, 5.0)
    world.take()
    assert trio.run(world.specs.remove, "web")
    assert (world.specs.deployed, world.specs.tombstones) == ({}, {"web": 1000.0})
    before = world.stored
    assert not trio.run(world.specs.remove, "web")
    assert world.stored == before


def test_problems_in_words(world):
    """Keys that are not ours come first, then the changes that Consul does not have."""
    world.keys.set("specs/other", b"hello")
    world.take()
    world.keys.down = True
    for name in ("web", "shop"):
        trio.run(world.specs.put, name, replace(SPEC, name=name))
    assert world.specs.problems == (
        'key "meshbox/specs/other" in Consul is no spec of ours; it is left alone',
        'the last change of service "shop" waits for Consul',
        'the last change of service "web" waits for Consul',
    )


def test_many_bad_keys_are_counted():
    """They are named up to a bound, in words that can be shown."""
    specs = Specs(None, lambda: 0.0, lambda: None)
    _, specs.foreign = _parsed({f"meshbox/specs/{EVIL}{number}": (b"[]", 1) for number in range(60)}, "meshbox/specs/")
    assert len(specs.problems) == 51
    assert specs.problems[-1] == "10 more keys in Consul are left alone"
    for words in specs.problems:
        check_shown(words)


def test_any_error_at_a_key_is_that_keys_problem(monkeypatch):
    """The others are read."""

    def fails(key, value, index):
        if key.endswith("bad"):
            raise ZeroDivisionError("odd")
        return parse_spec(key, value, index)

    monkeypatch.setattr("appliance.drivers.consul.specs.parse_spec", fails)
    good = dump_spec(StoredSpec(service=None, changed=1.0))
    found, foreign = _parsed({"s/bad": (good, 1), "s/web": (good, 1)}, "s/")
    assert (found.keys(), foreign) == ({"web"}, {"bad": "ZeroDivisionError: odd"})
