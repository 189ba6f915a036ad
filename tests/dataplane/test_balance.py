"""Choice of backends: by weight, without those that fail, peers only to local ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from appliance.dataplane.balance import EJECT_SECONDS, Balancer
from appliance.model.network import Backend


class Clock:
    """Time that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def backend(number: int, *, weight: int = 1, local: bool = True) -> Backend:
    """The backend at 10.0.0.`number`:80."""
    return Backend(address=IPv4Address("10.0.0.0") + number, port=80, local=local, weight=weight)


def shares(balancer: Balancer, picks: int = 6000, **options) -> dict[int, float]:
    """Return each backend's share of many picks, by its number."""
    counted = Counter(int(balancer.pick(**options).backend.address) & 255 for _ in range(picks))
    return {number: count / picks for number, count in counted.items()}


def test_spreads_by_weight() -> None:
    """Each replica of the mesh gets the same share: a peer with three counts three times."""
    found = shares(Balancer([backend(1), backend(2, weight=3, local=False)]))
    assert 0.21 < found[1] < 0.29
    assert 0.71 < found[2] < 0.79


def test_peers_get_local_backends_only() -> None:
    """What another machine sends never goes on to a third, so that nothing loops."""
    balancer = Balancer([backend(1), backend(2, weight=9, local=False)])
    assert shares(balancer, local_only=True).keys() == {1}
    assert Balancer([backend(2, local=False)]).pick(local_only=True) is None


def test_retiring_one_serves_peers_that_have_not_heard() -> None:
    """Only peers get to a retiring backend, and only when no other is here; so moving a last replica fails nothing."""
    going = replace(backend(1), retiring=True)
    assert shares(Balancer([going, backend(2)])).keys() == {2}
    assert shares(Balancer([going, backend(2)]), local_only=True).keys() == {2}
    alone = Balancer([going, backend(3, local=False)])
    assert shares(alone).keys() == {3}
    assert shares(alone, local_only=True).keys() == {1}
    assert alone.pick(tried=(alone.states["10.0.0.3", 80],)) is None
    assert Balancer([going]).pick() is None


def test_no_backend_is_no_pick() -> None:
    """Without backends there is nothing to pick."""
    assert Balancer().pick() is None


def test_failed_one_is_left_out_for_longer_and_longer() -> None:
    """After each failure in a row the pause grows; afterwards it is tried again."""
    clock = Clock()
    balancer = Balancer([backend(1), backend(2)], clock=clock)
    bad = balancer.states["10.0.0.1", 80]
    for pause in EJECT_SECONDS:
        balancer.failed(bad)
        clock.now += pause - 0.01
        assert shares(balancer, 200).keys() == {2}
        clock.now += 0.02
        assert shares(balancer, 200).keys() == {1, 2}


def test_success_ends_the_pause() -> None:
    """One connection that succeeds brings a backend back and shortens the next pause."""
    clock = Clock()
    balancer = Balancer([backend(1), backend(2)], clock=clock)
    state = balancer.states["10.0.0.1", 80]
    balancer.failed(state)
    balancer.failed(state)
    balancer.succeeded(state)
    assert shares(balancer, 200).keys() == {1, 2}
    balancer.failed(state)
    assert state.ejected_until == clock.now + EJECT_SECONDS[0]


def test_a_container_that_fails_is_told_of_once() -> None:
    """Whoever looks up its ports then looks at once; and again when it fails after it has served."""
    told: list[IPv4Address] = []
    balancer = Balancer([backend(1), backend(2, local=False)], clock=Clock(), refused=told.append)
    one, peer = balancer.states["10.0.0.1", 80], balancer.states["10.0.0.2", 80]
    for state in (one, one, peer):
        balancer.failed(state)
    assert told == [IPv4Address("10.0.0.1")]
    balancer.succeeded(one)
    balancer.failed(one)
    assert told == [IPv4Address("10.0.0.1")] * 2


def test_all_failing_is_better_than_none() -> None:
    """When every backend is left out, they are tried nevertheless."""
    balancer = Balancer([backend(1), backend(2)], clock=Clock())
    for state in balancer.states.values():
        balancer.failed(state)
    assert shares(balancer, 200).keys() == {1, 2}


@pytest.mark.parametrize("kind", ["on_demand", "paused"])
def test_a_spare_serves_where_nothing_else_does(kind: str) -> None:
    """Not beside one that is left out either, which may be back; to peers a remote one is no other."""
    spare = replace(backend(1), **{kind: True})
    balancer = Balancer([spare, backend(2)], clock=Clock())
    assert shares(balancer, 200).keys() == {2}
    balancer.failed(balancer.states["10.0.0.2", 80])
    assert shares(balancer, 200).keys() == {2}
    assert balancer.pick(tried=(balancer.states["10.0.0.2", 80],)) is balancer.states["10.0.0.1", 80]
    assert shares(Balancer([spare]), 10).keys() == {1}
    elsewhere = Balancer([spare, backend(3, local=False)])
    assert shares(elsewhere, 200).keys() == {3}
    assert shares(elsewhere, 200, local_only=True).keys() == {1}


def test_a_spare_is_not_to_blame() -> None:
    """A port that opens on demand may well refuse; one that was left out when it was paused is a spare at once."""
    balancer = Balancer([replace(backend(1), on_demand=True)], clock=Clock())
    state = balancer.states["10.0.0.1", 80]
    balancer.failed(state)
    assert (state.failed, state.failures, state.ejected_until) == (1, 0, 0.0)
    balancer = Balancer([backend(1)], clock=Clock())
    state = balancer.states["10.0.0.1", 80]
    balancer.failed(state)
    balancer.update([replace(backend(1), paused=True)])
    assert (state.failures, state.ejected_until) == (0, 0.0)


def test_a_retry_goes_elsewhere() -> None:
    """One that was tried for this connection is not picked again, ejected or not."""
    balancer = Balancer([backend(1), backend(2)], clock=Clock())
    first = balancer.pick()
    second = balancer.pick(tried=(first,))
    assert second is not first
    assert balancer.pick(tried=(first, second)) is None
    balancer.failed(second)
    assert balancer.pick(tried=(first,)) is second


def test_update_keeps_counters_of_those_that_stay() -> None:
    """A swap of backends loses no counts, and tells which backends left."""
    balancer = Balancer([backend(1), backend(2)])
    balancer.succeeded(balancer.states["10.0.0.1", 80])
    left = balancer.update([backend(1, weight=5), backend(3)])
    assert [str(state.backend.address) for state in left] == ["10.0.0.2"]
    assert balancer.states["10.0.0.1", 80].opened == 1
    assert balancer.states["10.0.0.1", 80].backend.weight == 5
