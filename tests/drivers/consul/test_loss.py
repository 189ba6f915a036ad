"""Removed, or only missing? The clock is virtual."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from appliance.drivers.consul.codec import TTL
from appliance.drivers.consul.loss import APPEARS, EPOCH, GRACE, LOOK, LossDetector
from appliance.drivers.consul.staleness import Staleness
from appliance.errors import RetryError
from tests.drivers.fakekeys import FakeKeys

OWN = [{"Service": {"ID": "meshbox:m1"}}]


class World:
    """A loss detector over fake keys in which this machine is registered."""

    def __init__(self):
        self.keys = FakeKeys()
        self.keys.machines = OWN
        self.losses = 0
        self.others = 0
        self.staleness = Staleness(trio.current_time, lambda: None)
        self.loss = LossDetector(self.keys, self.staleness, "m1", lost=self._lost, other=self.other)

    def other(self):
        """Another Consul was met."""
        self.others += 1

    def _lost(self):
        self.losses += 1

    def why(self):
        """What is held, in words that say which Consul is meant."""
        assert self.staleness.why.startswith("Consul at http://fake has ")
        return self.staleness.why


def run(script):
    """Run a script in a world of its own, on virtual time."""
    trio.run(script, World(), clock=trio.testing.MockClock(autojump_threshold=0))


def test_removal():
    """With the epoch as known and this machine in sight, what is missing was removed."""

    async def script(world):
        await world.loss.look()
        assert await world.loss.merge({"a": 1, "b": 1}, {"b": 2, "c": 2}) == {"b": 2, "c": 2}
        assert await world.loss.merge({"a": 1}, {}) == {}
        assert world.losses == 0

    run(script)


def test_growth_asks_nothing():
    """Where nothing is missing, no evidence is needed: not even a Consul."""

    async def script(world):
        world.keys.down = True
        assert await world.loss.merge({"a": 1}, {"a": 2, "b": 2}) == {"a": 2, "b": 2}

    run(script)


def test_first_contact_and_the_others_epoch():
    """The first machine makes the epoch, the others take it over, and none of that is a loss."""

    async def script(world):
        await world.loss.look()
        other = LossDetector(world.keys, world.staleness, "m2", lost=world._lost, other=world.other)
        await other.look()
        assert other.epoch == world.loss.epoch == world.keys.keys[EPOCH][0].decode() != ""
        assert world.losses == 0

    run(script)


@pytest.mark.parametrize("epoch", [None, b"another"])
def test_loss(epoch):
    """When the epoch is gone or another one, everything known is held for the grace, and that is visible."""

    async def script(world):
        await world.loss.look()
        world.keys.keys.clear()
        if epoch:
            world.keys.set(EPOCH, epoch)
        assert await world.loss.merge({"a": 1, "b": 1}, {"b": 2}) == {"a": 1, "b": 2}
        assert world.losses == 1
        assert "lost its data" in world.why()
        began = trio.current_time()
        await world.loss.get_over()
        assert GRACE - 1 <= trio.current_time() - began <= GRACE + 1
        assert world.staleness.since is None
        assert await world.loss.merge({"a": 1, "b": 1}, {"b": 2}) == {"b": 2}
        assert world.losses == 1

    run(script)


def test_start_meets_another_consul():
    """An epoch that has nothing to do with the one on disk: nothing is held and nobody has lost anything."""

    async def script(world):
        world.loss.remember("mine")
        world.keys.set(EPOCH, b"theirs")
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"b": 2}
        assert (world.others, world.losses, world.loss.epoch) == (1, 0, "theirs")

    run(script)


def test_start_after_a_loss_that_others_mended():
    """The same Consul with its data lost and an epoch made by another machine: that has the former one behind it."""

    async def script(world):
        other = LossDetector(world.keys, world.staleness, "m2", lost=world._lost, other=world.other)
        await other.look()
        world.loss.remember(other.epoch)
        for _ in range(2):
            world.keys.keys.clear()
            await other.look()
        world.losses = 0
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}
        assert (world.others, world.losses, world.loss.epoch) == (0, 1, other.epoch)

    run(script)


def test_start_without_an_epoch_there():
    """A Consul that was emptied while this machine was off gets everything back."""

    async def script(world):
        world.loss.remember("mine")
        assert await world.loss.merge({"a": 1}, {}) == {"a": 1}
        assert (world.others, world.losses) == (0, 1)

    run(script)


def test_false_alarm():
    """A new leader that knew nothing for a moment: as soon as the old epoch is there again, all is as before."""

    async def script(world):
        await world.loss.look()
        former = world.keys.keys.pop(EPOCH)
        world.keys.meddler = lambda: world.keys.keys.update({EPOCH: former})  # it was there all the time
        assert await world.loss.merge({"a": 1}, {}) == {"a": 1}
        began = trio.current_time()
        await world.loss.get_over()
        assert trio.current_time() - began <= 2
        assert world.loss.epoch == former[0].decode()
        assert await world.loss.merge({"a": 1}, {}) == {}

    run(script)


def test_an_answer_without_this_machine_says_nothing():
    """What is missing may only be hidden by a token that may not read; the error says so."""

    async def script(world):
        await world.loss.look()
        world.keys.machines = []
        with pytest.raises(
            RetryError, match=r'at http://fake does not show "meshbox:m1".*service_prefix "" \{ policy = "read" \}'
        ):
            await world.loss.merge({"a": 1}, {})

    run(script)


def test_an_answer_with_less_is_asked_for_again():
    """It may be from the last moment of some trouble: what counts is what Consul says once it is known to be well."""

    async def script(world):
        async def again():
            return {"a": 2}

        await world.loss.look()
        assert await world.loss.merge({"a": 1, "b": 1}, {}, again) == {"a": 2}
        assert await world.loss.merge({"a": 1}, {"a": 3}, again) == {"a": 3}

    run(script)


def test_data_of_an_earlier_time():
    """After a backup was restored, with the same epoch, what is missing is held for the grace and put back."""

    async def script(world):
        await world.loss.look()
        world.loss.went_back(sure=True)
        assert world.losses == 1
        assert "older data than before" in world.why()
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}
        await world.loss.get_over()
        assert world.staleness.since is None
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"b": 2}

    run(script)


def test_data_that_may_be_of_an_earlier_time():
    """Until that is known nothing is missed; nothing is put back either, for a server may only be behind."""

    async def script(world):
        await world.loss.look()
        world.loss.went_back(sure=False)
        assert world.losses == 0
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}
        await world.loss.get_over()
        assert world.staleness.since is None
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"b": 2}

    run(script)


def test_consul_was_away():
    """For one TTL nothing counts as removed; that is no loss, and nothing is put back."""

    async def script(world):
        await world.loss.look()
        world.loss.was_away()
        assert world.loss.suspended == TTL
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}
        await world.loss.get_over()
        assert (world.losses, world.staleness.since) == (0, None)
        assert await world.loss.merge({"a": 1}, {"b": 2}) == {"b": 2}

    run(script)


def test_older_data_without_an_epoch():
    """A backup of before the first machine: that is a loss of everything."""

    async def script(world):
        await world.loss.look()
        world.loss.went_back(sure=True)
        world.keys.keys.clear()
        assert await world.loss.merge({"a": 1}, {}) == {"a": 1}
        assert world.losses == 2
        assert "lost its data" in world.why()

    run(script)


def test_no_evidence_without_consul():
    """When the epoch cannot be read, nothing is decided."""

    async def script(world):
        await world.loss.look()
        world.keys.down = True
        with pytest.raises(RetryError):
            await world.loss.merge({"a": 1}, {})

    run(script)


def test_the_epoch_among_other_keys():
    """An answer that holds the known epoch asks nothing; any other has it looked at anew."""

    async def script(world):
        await world.loss.look()
        known = world.keys.keys[EPOCH]
        world.keys.down = True
        await world.loss.compare(known)
        for found in (None, (b"another", 1)):
            with pytest.raises(RetryError):
                await world.loss.compare(found)

    run(script)


def lose(world):
    """Consul loses the epoch."""
    world.keys.keys.clear()


DOUBTS = {
    "loss": lose,
    "older data": lambda world: world.loss.went_back(sure=True),
    "perhaps older data": lambda world: world.loss.went_back(sure=False),
    "silence": lambda world: world.loss.was_away(),
}


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS.keys())
def test_losses_are_settled(doubt):
    """After each one, once its time is over, what did not come back is dropped: until that has been done, not twice."""

    async def script(world):
        settled = []

        async def settle():
            assert not world.loss.suspended
            settled.append(trio.current_time())
            return len(settled) == 2

        await world.loss.look()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.loss.settle_losses, settle)
            await trio.sleep(100)
            assert settled == []
            doubt(world)
            await world.loss.look()
            world.staleness.failed("specs", "no leader")
            await trio.sleep(100)
            assert settled == [], "not while something else is held"
            world.staleness.over("specs")
            await trio.sleep(100)
            assert len(settled) == 2
            nursery.cancel_scope.cancel()

    run(script)


def test_facts_are_held_until_consul_shows_this_machine():
    """That takes a moment, which is no fault; after that the reason is told until it does."""

    async def script(world):
        world.keys.machines = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.loss.confirm_own)
            await trio.sleep(sum(APPEARS) - 0.01)
            assert not world.staleness.held
            await trio.sleep(0.02)
            assert 'does not show "meshbox:m1"' in world.staleness.why
            world.keys.machines = OWN
            await trio.sleep(LOOK)
            assert not world.staleness.held
        assert world.losses == 0

    run(script)
