"""What waits while something else is not in place."""

from __future__ import annotations

from dataclasses import replace

from appliance.model import state as st
from appliance.plan.compile import compile_host
from appliance.plan.withheld import must_wait, zone_without
from tests.plan.cases import address, container, snapshot

SERVER = container(2, "apple.orange", ports=(80,))
CLIENT = container(3, "flask.flask", to=("apple.orange:80", "pear.tree:80"))
OTHER = container(4, "pear.tree", ports=(80,))
BOTH = (SERVER, CLIENT)
WANT = compile_host(snapshot(SERVER, CLIENT, OTHER))
UNLOCKED = frozenset({CLIENT.netns.id})


def test_no_name_without_rules() -> None:
    """A workload without its rules sees nothing; others see what they may."""
    zone = zone_without(WANT.zone, None, BOTH, UNLOCKED, frozenset())
    assert zone.views.keys() == {address(2), address(4)}
    assert zone == replace(WANT.zone, views=zone.views)
    assert zone_without(WANT.zone, None, BOTH, frozenset(), frozenset()) is WANT.zone


def test_names_of_standing_rules_stay() -> None:
    """Those which the rules in force were for, and which are still allowed."""
    former = replace(WANT.zone, views={address(3): frozenset({SERVER.name, OTHER.name, CLIENT.name})})
    want = replace(WANT.zone, views={**WANT.zone.views, address(3): frozenset({SERVER.name, CLIENT.name})})
    assert zone_without(want, former, BOTH, UNLOCKED, UNLOCKED).views[address(3)] == {SERVER.name, CLIENT.name}
    narrow = replace(former, views={address(3): frozenset({CLIENT.name})})
    assert zone_without(want, narrow, BOTH, UNLOCKED, UNLOCKED).views[address(3)] == {CLIENT.name}
    assert address(3) not in zone_without(want, former, BOTH, UNLOCKED, frozenset()).views
    assert address(3) not in zone_without(want, None, BOTH, UNLOCKED, UNLOCKED).views


def test_nothing_is_announced_that_does_not_listen() -> None:
    """Everything else may be done."""
    (registration, *_) = WANT.registrations.values()
    step = st.Register(registration=registration)
    assert must_wait(step, st.HostState())
    assert not must_wait(step, WANT)
    assert not must_wait(st.Deregister(registration=registration), st.HostState())
