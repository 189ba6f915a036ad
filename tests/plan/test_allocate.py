"""Virtual IPs and proxy ports: stable, never shared, rested."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model.facts import Allocations, Settings
from appliance.model.names import MAX_ENTRIES, Destination, Name, Protocol
from appliance.plan import allocate as module
from appliance.plan.allocate import REST, misfit, shortage
from tests.plan.cases import SETTINGS, declared, dest, spec

NONE = Allocations()


def allocate(kept, names, destinations, *rest):
    """As the function, from any iterables."""
    return module.allocate(kept, frozenset(names), frozenset(destinations), *rest)


def lacking(found, names, destinations, *rest):
    """What goes without, in words."""
    return shortage(found, frozenset(names), frozenset(destinations), *rest)


def names(*numbers: int) -> list[Name]:
    """Some names."""
    return [Name(service="s", container=f"c{n}") for n in numbers]


def small(vip_range: str = "10.9.0.0/29", ports: tuple[int, int] = (20000, 20003)):
    """Settings with hardly any room: 6 addresses, 4 ports."""
    return replace(SETTINGS, vip_range=IPv4Network(vip_range), proxy_ports=ports)


def test_same_everywhere():
    """A name's address is a hash of the name: these values must never change between versions."""
    found = allocate(
        NONE, [Name.parse("flask.flask"), Name.parse("redis.flask")], [dest("flask.flask:8080")], SETTINGS, 0
    )
    assert found == allocate(NONE, reversed(found.vips), found.ports, SETTINGS, 99)
    assert {str(n): str(a) for n, a in found.vips.items()} == {
        "flask.flask": "242.166.46.177",
        "redis.flask": "243.19.216.51",
    }
    assert found.ports == {dest("flask.flask:8080"): 24424}


def test_same_callers_everywhere():
    """So is a caller's address, in the part that no name has: these values must never change either."""
    found = allocate(NONE, [], [], SETTINGS, 0, frozenset(), {"flask.flask/0", "flask.flask/1", "host"}, {})
    assert {key: str(a) for key, a in found.callers.items()} == {
        "flask.flask/0": "240.3.103.36",
        "flask.flask/1": "240.11.26.77",
        "host": "240.4.140.163",
    }


def test_names_are_kept_out_of_the_callers_part():
    """One whose hash lies in there has another hash, not the next address behind: names do not crowd there."""
    many = allocate(NONE, names(*range(1000)), [], SETTINGS, 0)
    assert not [a for a in many.vips.values() if a in IPv4Network("240.0.0.0/8")]
    assert len([a for a in many.vips.values() if a in IPv4Network("241.0.0.0/9")]) < 100
    inside = Allocations(vips={names(1)[0]: IPv4Address("240.0.0.9")})
    moved = allocate(inside, names(1), [], SETTINGS, 0)
    assert moved.vips == allocate(NONE, names(1), [], SETTINGS, 0).vips, "one that was there moves once"
    assert allocate(moved, names(1), [], SETTINGS, 1) is moved


def test_callers_stay_and_rest_as_names_do():
    """A caller that is gone for less than a week gets its address back, and nobody has it meanwhile."""
    settings = small("10.9.0.0/25")
    seven = {f"a.b/{n}" for n in range(7)}
    full = allocate(NONE, [], [], settings, 0, frozenset(), seven)
    assert sorted(full.callers.values()) == [IPv4Address("10.9.0.0") + n for n in range(1, 8)]
    one_less = allocate(full, [], [], settings, 10, frozenset(), seven - {"a.b/3"})
    assert one_less.freed_callers == {"a.b/3": full.callers["a.b/3"]}
    assert one_less.freed_vips == {full.callers["a.b/3"]: 10}
    assert allocate(one_less, [], [], settings, 20, frozenset(), seven).callers == full.callers
    other = allocate(one_less, [], [], settings, 20, frozenset(), seven - {"a.b/3"} | {"x.y/0"})
    assert other.callers["x.y/0"] == full.callers["a.b/3"], "rather than none"
    eight = allocate(full, [], [], settings, 20, frozenset(), seven | {"a.b/30"})
    assert eight.callers == full.callers, "what does not fit goes without"


def test_unchanged_is_identical():
    """Nothing new: the very same object comes back, so that nothing is written or compared further."""
    first = allocate(NONE, names(1, 2), [dest("c1.s:80")], SETTINGS, 5)
    assert allocate(first, names(2, 1), [dest("c1.s:80")], SETTINGS, 6) is first


def test_fills_the_range_to_the_last_address_and_no_further():
    """On collision the next address is taken, never the range's first or last; one name too many goes without."""
    found = allocate(NONE, names(*range(6)), [], small(), 0)
    assert sorted(found.vips.values()) == [IPv4Address(f"10.9.0.{n}") for n in range(1, 7)]
    assert lacking(found, names(*range(6)), [], small()) == ""
    more = allocate(found, names(*range(-1, 6)), [], small(), 0)
    assert more.vips == found.vips, "a name that has an address keeps it"
    assert lacking(more, names(*range(-1, 6)), [], small()) == (
        "vip_range 10.9.0.0/29 has 6 addresses for 7 names, none is left for c-1.s: widen vip_range"
    )


def test_first_in_order_get_the_last_addresses():
    """Whatever the order in which they are told, the same names go without."""
    found = allocate(NONE, names(*range(9)), [], small(), 0)
    assert found == allocate(NONE, reversed(names(*range(9))), [], small(), 0)
    assert found.vips.keys() == set(names(*range(6)))


def test_destination_whose_name_has_no_address_gets_no_port():
    """It could not be dialled; the words are about the address only."""
    wanted = [dest(f"c{n}.s:80") for n in range(8)]
    found = allocate(NONE, names(*range(8)), wanted, small(ports=SETTINGS.proxy_ports), 0)
    assert found.ports.keys() == set(wanted[:6])
    assert lacking(found, names(*range(8)), wanted, small(ports=SETTINGS.proxy_ports)).endswith(
        "none is left for c6.s, c7.s: widen vip_range"
    )


@pytest.mark.parametrize("prefix", [31, 32])
def test_range_without_a_single_address(prefix):
    """A range too small for anything is named as such."""
    found = allocate(NONE, names(*range(5)), [], small(f"10.9.0.0/{prefix}"), 0)
    assert found == NONE
    words = lacking(found, names(*range(5)), [], small(f"10.9.0.0/{prefix}"))
    assert "has 0 addresses for 5 names, none is left for c0.s, c1.s, c2.s and 2 more" in words


def test_freed_address_rests_for_a_week():
    """An address goes to another name only a week after it was freed."""
    five = allocate(NONE, names(0, 1, 2, 3, 4), [], small(), 0)
    four = allocate(five, names(1, 2, 3, 4), [], small(), 100)
    freed = five.vips[names(0)[0]]
    assert four.freed_vips == {freed: 100}
    five_again = allocate(four, names(1, 2, 3, 4, 5), [], small(), 200)
    assert freed not in five_again.vips.values()
    assert allocate(four, names(1, 2, 3, 4), [], small(), 100 + REST).freed_vips == {}


def test_name_that_returns_gets_its_address_back():
    """A container that is made anew within the week keeps its name's address."""
    first = allocate(NONE, names(0, 1), [], small(), 0)
    gone = allocate(first, names(1), [], small(), 100)
    again = allocate(gone, names(0, 1), [], small(), 200)
    assert again.vips == first.vips
    assert again.freed_vips == {}
    assert again.freed_names == {}


def test_when_all_rest_the_longest_rested_is_taken():
    """A full range gives out the address that was freed first rather than none."""
    six = allocate(NONE, names(0, 1, 2, 3, 4, 5), [], small(), 0)
    five = allocate(six, names(1, 2, 3, 4, 5), [], small(), 100)
    four = allocate(five, names(2, 3, 4, 5), [], small(), 200)
    again = allocate(four, names(2, 3, 4, 5, 6), [], small(), 300)
    assert again.vips[names(6)[0]] == six.vips[names(0)[0]]


def test_clock_that_was_ahead():
    """A time of freeing that lies in the future counts from now, so it ends."""
    kept = Allocations(freed_vips={IPv4Address("10.9.0.1"): 1e12})
    assert allocate(kept, [], [], small(), 50).freed_vips == {IPv4Address("10.9.0.1"): 50}


def test_new_range_moves_what_is_outside():
    """After a change of the configuration everything is inside the new ranges."""
    first = allocate(NONE, names(1), [dest("c1.s:80")], SETTINGS, 0)
    found = allocate(first, names(1), [dest("c1.s:80")], small(), 1)
    assert found.vips[names(1)[0]] in IPv4Network("10.9.0.0/29")
    assert 20000 <= found.ports[dest("c1.s:80")] <= 20003


def test_unusable_ports_are_left():
    """A port that another program holds is given up, also by the destination that had it."""
    first = allocate(NONE, names(1), [dest("c1.s:80")], SETTINGS, 0)
    port = first.ports[dest("c1.s:80")]
    found = allocate(first, names(1), [dest("c1.s:80")], SETTINGS, 1, frozenset({port}))
    assert found.ports[dest("c1.s:80")] != port


def test_ports_run_out():
    """What has a port keeps it; the words say how many are wanted and how many taken, and what to configure."""
    wanted = [dest(f"c1.s:{n}") for n in range(1, 6)]
    settings, held = small(), frozenset({20001})
    first = allocate(NONE, names(1), wanted[2:5], settings, 0, held)
    found = allocate(first, names(1), wanted, settings, 0, held)
    assert found.ports == first.ports
    assert lacking(found, names(1), wanted, settings, held) == (
        "proxy_ports 20000-20003 has 4 ports (1 of them in use) for 5 destinations, none is left for"
        " c1.s:1/tcp, c1.s:2/tcp: widen proxy_ports"
    )


def test_smaller_range_keeps_what_is_inside():
    """After a restart with a smaller range, some move in and the others go without; nothing is refused."""
    wanted = [dest(f"c1.s:{n}") for n in range(1, 5)]
    before = allocate(NONE, names(1), wanted, small(), 0)
    after = allocate(before, names(1), wanted, small(ports=(20000, 20001)), 1)
    kept = {d: p for d, p in before.ports.items() if p <= 20001}
    assert len(after.ports) == 2
    assert kept.items() <= after.ports.items()


def test_deploy_that_does_not_fit():
    """Counted with what has allocations already, and without what it replaces."""
    kept = allocate(NONE, names(1), [dest(f"c1.s:{n}") for n in (1, 2, 3)], small(), 0)
    two = spec("new", declared("new", ports=(1, 2)))
    assert "none is left for new.new:2/tcp: widen proxy_ports" in misfit(kept, [two], small(), 0)
    assert misfit(kept, [spec("new")], small(), 0) == ""
    assert "4 ports (1 of them in use)" in misfit(kept, [spec("new")], small(), 0, frozenset({20000}))
    assert misfit(kept, [spec("s", declared("c1", ports=(1, 2, 3, 4)))], small(), 0) == ""


def test_port_of_a_closing_listener_is_the_last_choice():
    """A port freed in this pass is still open: it is taken only when there is no other."""
    full = [dest(f"c.s:{n}") for n in range(1, 5)]
    three = allocate(NONE, [], full[:3], small(), 0)
    swapped = allocate(three, [], [*full[1:3], full[3]], small(), 1)
    assert swapped.ports[full[3]] not in three.ports.values()
    four = allocate(NONE, [], full, small(), 0)
    other = dest("c.s:9")
    assert allocate(four, [], [*full[1:], other], small(), 1).ports[other] == four.ports[full[0]]


def test_a_state_file_that_shares_an_address_is_put_right():
    """Two names on one kept address, two destinations on one kept port: one of them moves."""
    one, two = names(1, 2)
    a, b = dest("c1.s:80"), dest("c2.s:80")
    kept = Allocations(vips=dict.fromkeys((one, two), IPv4Address("240.0.0.9")), ports=dict.fromkeys((a, b), 20009))
    found = allocate(kept, [one, two], [a, b], SETTINGS, 0)
    assert len(set(found.vips.values())) == 2
    assert len(set(found.ports.values())) == 2


_NUMBERS = st.sets(st.integers(0, 9), max_size=6)


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS, st.floats(0, 2 * REST)), max_size=8))
def test_callers_and_names_never_meet(rounds):
    """Whatever comes and goes: each caller has an address of its own that stays, and never a name's."""
    kept = NONE
    settings = small("10.9.0.0/25")
    for numbers, calling, now in rounds:
        keys = {f"a.b/{n}" for n in calling}
        found = allocate(kept, names(*numbers), [], settings, now, frozenset(), keys)
        assert found.callers.keys() == keys
        addresses = [*found.callers.values(), *found.vips.values()]
        assert len(set(addresses)) == len(addresses)
        assert all(a in IPv4Network("10.9.0.0/29") for a in found.callers.values())
        assert not found.freed_vips.keys() & set(addresses)
        assert all(found.callers[key] == kept.callers[key] for key in keys & kept.callers.keys())
        kept = found


@given(st.lists(st.tuples(_NUMBERS, st.floats(0, 2 * REST)), max_size=8))
def test_never_shared_and_never_moved(rounds):
    """Whatever comes and goes: no two share an address or a port, and what stays keeps its own."""
    kept = NONE
    settings = small(ports=(20000, 20007))
    for numbers, now in rounds:
        wanted = [Destination(name=n, port=80, protocol=Protocol.TCP) for n in names(*numbers)]
        found = allocate(kept, names(*numbers), wanted, settings, now)
        assert found.vips.keys() == set(names(*numbers))
        assert found.ports.keys() == set(wanted)
        assert len(set(found.vips.values())) == len(found.vips)
        assert len(set(found.ports.values())) == len(found.ports)
        assert not found.freed_vips.keys() & set(found.vips.values())
        assert all(found.vips[n] == kept.vips[n] for n in found.vips.keys() & kept.vips.keys())
        assert all(found.ports[d] == kept.ports[d] for d in found.ports.keys() & kept.ports.keys())
        kept = found


def test_one_container_takes_a_small_part_of_the_ports():
    """What it may declare at most, beside the default range: others still find theirs."""
    first, last = Settings(node="h1").proxy_ports
    assert (last - first + 1) / MAX_ENTRIES > 32
