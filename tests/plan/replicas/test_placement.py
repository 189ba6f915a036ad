"""Which machine runs which replica."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InputError
from appliance.model.privileges import Privileges
from appliance.plan.replicas.placement import check_allowed, check_constraint, fits, not_allowed, placement
from appliance.spec.constraint import parse_constraint
from tests.plan.cases import SETTINGS, declared, machine, spec

_MACHINES = st.lists(st.integers(1, 12), min_size=1, max_size=8, unique=True)


def machines(*numbers: int):
    """Machines m<number>."""
    return [machine(f"m{n}", f"10.0.0.{n}") for n in numbers]


def place(service, others):
    """Where replicas go among these machines alone, as a gateway sees it: it runs nothing itself."""
    return placement(service, replace(SETTINGS, node="gate", gateway=True), others)


@given(_MACHINES, st.integers(1, 40), st.randoms())
def test_every_replica_on_exactly_one_machine_in_any_order(numbers, count, random):
    """Each replica has one of the machines, none far more than its share, in whatever order they are listed."""
    placed = place(spec("web", count=count), machines(*numbers))
    assert len(placed) == count
    assert set(placed) <= {f"m{n}" for n in numbers}
    assert len(set(placed)) == min(count, len(numbers)), "none has two while others have none"
    assert max(Counter(placed).values()) <= (1 if count <= len(numbers) else ceil(1.25 * count / len(numbers)))
    shuffled = random.sample(numbers, len(numbers))
    assert place(spec("web", count=count), machines(*shuffled)) == placed


@pytest.mark.parametrize(("count", "number"), [(1, 3), (3, 3), (10, 5), (20, 10), (100, 10)])
def test_little_moves_when_a_machine_comes_or_goes(count, number):
    """Over many services, one of n machines more or less moves about 1/n of the replicas."""
    moved = total = 0
    for service in (spec(f"s{i}", count=count) for i in range(40)):
        before = place(service, machines(*range(number)))
        after = place(service, machines(*range(number - 1)))
        moved += sum(b != a for b, a in zip(before, after, strict=True))
        total += count
    assert 0.7 / number < moved / total < 1.6 / number


def test_same_everywhere():
    """Machines of different versions must agree: these placements never change."""
    assert place(spec("flask", count=3), machines(1, 2, 3)) == ("m1", "m2", "m3")
    assert place(spec("redis", count=5), machines(1, 2, 3)) == ("m2", "m2", "m3", "m2", "m1")


def test_alone():
    """Without other machines everything is here."""
    assert placement(spec("web", count=2), SETTINGS, []) == ("here", "here")


def test_this_machine_always_counts():
    """A registry that has lost this machine for a moment must not make it stop everything."""
    service = spec("web", count=3)
    others = machines(1, 2)
    assert "here" in placement(service, SETTINGS, others)
    assert placement(service, SETTINGS, others) == place(service, [*others, machine("here", "10.0.0.9")])


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (None, True),
        ("m1", True),
        ("m2", False),
        ("disk==ssd", True),
        (" disk == ssd ", True),
        ("disk==hdd", False),
        ("rack==1", False),
        ("==", False),
    ],
)
def test_fits(constraint, expected):
    """A constraint is nothing, a node's name, or key==value of its meta."""
    parsed = parse_constraint(constraint) if constraint is not None else None
    assert fits(parsed, "m1", (("disk", "ssd"),)) is expected


def test_constraint_pins():
    """All replicas go where the constraint says, and nowhere when no machine meets it."""
    settings = replace(SETTINGS, meta=(("disk", "hdd"),))
    with_disk = [*machines(1, 2), machine("m3", "10.0.0.3", disk="ssd")]
    assert placement(spec("web", count=3, constraint="disk==ssd"), settings, with_disk) == ("m3",) * 3
    assert set(placement(spec("web", count=3, constraint="disk==hdd"), settings, with_disk)) == {"here"}
    assert placement(spec("web", constraint="disk==tape"), settings, with_disk) == ()


def test_unknown_constraint():
    """The error names the service and the nearest constraint that some machine meets."""
    known = [machine("m3", "10.0.0.3", disk="ssd")]
    check_constraint(spec("web", constraint="disk==ssd"), SETTINGS, known)
    check_constraint(spec("web"), SETTINGS, [])
    with pytest.raises(
        InputError, match=r'"web": no machine meets the constraint "disk==sdd" \(did you mean "disk==ssd"\?\)'
    ):
        check_constraint(spec("web", constraint="disk==sdd"), SETTINGS, known)
    with pytest.raises(InputError, match="write a node's name or key==value of its meta"):
        check_constraint(spec("web", constraint="zzz"), SETTINGS, known)


def test_unhealthy_machines_run_nothing():
    """What a machine ran that is not heard of runs elsewhere, and nothing can be pinned to it."""
    dead, alive = replace(machine("m3", "10.0.0.3", disk="ssd"), healthy=False), machine("m1", "10.0.0.1")
    web = spec("web", count=4)
    assert set(place(web, [dead, alive])) == {"m1"}
    assert placement(web, SETTINGS, [dead, alive]) == placement(web, SETTINGS, [alive])
    with pytest.raises(InputError, match="no machine meets"):
        check_constraint(spec("web", constraint="disk==ssd"), SETTINGS, [dead, alive])


def test_gateways_run_nothing():
    """A machine without Docker gets no replica, seen from itself and from others; if all are so, a deploy says it."""
    gateway, full = replace(machine("gate", "10.0.0.9"), gateway=True), machine("m1", "10.0.0.1")
    alone = replace(SETTINGS, node="gate", gateway=True)
    web = spec("web", count=4)
    assert set(place(web, [gateway, full])) == {"m1"}
    assert set(placement(web, SETTINGS, [gateway])) == {SETTINGS.node}
    assert set(placement(web, alone, [gateway, full])) == {"m1"}
    assert placement(web, alone, [gateway]) == ()
    check_constraint(web, alone, [gateway, full])
    with pytest.raises(InputError, match="no machine runs containers"):
        check_constraint(web, alone, [gateway])


def giving(number: int, *paths: str):
    """A machine that gives these paths."""
    return replace(machine(f"m{number}", f"10.0.0.{number}"), allows=Privileges(paths=frozenset(paths)))


BOUND = spec("web", declared("web", volumes=("/srv/web:/data",), cap_add=("NET_ADMIN",)), count=3)
MOUNTING = spec("web", declared("web", volumes=("/srv/web:/data",)), count=3)
GATE = replace(SETTINGS, node="gate", gateway=True)


def test_machines_that_do_not_allow_it_are_no_place():
    """What a spec asks for is a constraint. A machine that announces nothing, of a former version, runs everything."""
    known = [giving(1), giving(2, "/srv"), machine("m3", "10.0.0.3")]
    assert set(place(MOUNTING, known)) == {"m2", "m3"}
    assert set(place(BOUND, known)) == {"m3"}
    assert place(BOUND, known[:2]) == ()
    assert set(place(spec("web", count=3), known)) == {"m1", "m2", "m3"}
    strict = replace(SETTINGS, allows=Privileges())
    assert set(placement(MOUNTING, strict, known)) == {"m2", "m3"}


def test_a_deploy_that_fits_nowhere_names_machines_and_what_they_lack():
    """One line; nothing is said as soon as one machine allows it, or where only the constraint keeps it out."""
    known = [giving(2, "/srv"), giving(1), giving(3)]
    with pytest.raises(InputError) as refused:
        check_allowed(BOUND, GATE, known)
    assert str(refused.value) == (
        'service "web": no machine allows what it asks for: /srv/web, NET_ADMIN on m1, m3; NET_ADMIN on m2: name host'
        " paths in allow_host_paths, and capabilities in allow_privileged, of a machine that is to run it"
    )
    check_allowed(MOUNTING, GATE, known)
    check_allowed(BOUND, SETTINGS, known)
    pinned = replace(MOUNTING, constraint=parse_constraint("m1"))
    assert not_allowed(pinned, GATE, known) == "no machine allows what it asks for: /srv/web on m1"
    assert not_allowed(replace(pinned, constraint=parse_constraint("m9")), GATE, known) == ""
