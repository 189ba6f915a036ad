"""What waits while something else is not in place."""

from __future__ import annotations

from dataclasses import replace

from appliance.model import state as st
from appliance.plan.compile import compile_host
from appliance.plan.withheld import must_wait, zone_without
from tests.plan.cases import BRIDGE, address, container, snapshot

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


def test_doors_and_routes_stand_in_rules() -> None:
    """They come after the rules, and go before them."""
    inner = compile_host(snapshot(CLIENT, networks=(replace(BRIDGE, internal=True),)))
    (netns,) = inner.rulesets
    rules, door, route = inner.rulesets[netns], inner.doors[netns], inner.routes[netns]
    closed = replace(rules, door=False)
    bare = replace(inner, doors={}, routes={})
    add, opening = st.AddRoute(before=None, after=route), st.OpenDoor(before=None, after=door)
    assert must_wait(add, st.HostState())
    assert not must_wait(add, bare)
    assert must_wait(opening, st.HostState())
    assert not must_wait(opening, replace(bare, routes=inner.routes))
    assert must_wait(opening, replace(bare, routes=inner.routes, rulesets={netns: closed}))
    drop, close = st.DropRuleset(ruleset=rules), st.PushRuleset(before=rules, after=closed)
    for there in (replace(bare, doors=inner.doors), replace(bare, routes=inner.routes)):
        assert must_wait(drop, there)
        assert must_wait(close, there) == bool(there.doors)
        assert not must_wait(st.PushRuleset(before=rules, after=rules), there)
    assert not must_wait(drop, bare)
    assert not must_wait(close, bare)


def test_door_comes_after_the_route_that_its_namespace_needs() -> None:
    """What leads to the door would pass for that route, which is needed as soon as the door is closed."""
    inner = compile_host(snapshot(CLIENT, networks=(replace(BRIDGE, internal=True),)))
    (door,) = inner.doors.values()
    assert must_wait(st.OpenDoor(before=None, after=door), replace(inner, doors={}, routes={}))
    (elsewhere,) = compile_host(snapshot(CLIENT)).doors.values()
    assert not must_wait(st.OpenDoor(before=None, after=elsewhere), replace(compile_host(snapshot(CLIENT)), doors={}))
