"""Doors and routes follow from rulesets, and callers' addresses from who they are."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from appliance.model.facts import Machine
from appliance.model.network import Door
from appliance.model.sources import CallerSources
from appliance.model.visitors import ConnectTo, Visitors
from appliance.plan.compile import compile_host
from appliance.plan.doors import doors, routes
from appliance.plan.visitors import LOOPBACK
from tests.plan.cases import BRIDGE, GATEWAY, SETTINGS, address, container, managed, snapshot, spec, stopped

if TYPE_CHECKING:
    from appliance.model.facts import Workload
    from appliance.model.state import HostState

CLIENT = container(3, "flask.flask")
RULES = compile_host(snapshot(CLIENT)).rulesets
(NETNS,) = RULES


def test_door_of_a_workload() -> None:
    """It is known by its address, and dials from the one of the virtual range that no name gets."""
    (door,) = doors(RULES).values()
    assert (door.netns, door.address, door.gateways) == (CLIENT.netns, address(3), {GATEWAY})
    assert door.door == Door(netns=NETNS, caller=address(3), dialler=IPv4Address("240.0.0.0"))


def test_no_door_without_an_address_or_where_none_is_wanted() -> None:
    """Neither where the settings say so, nor where there is nothing by which to know the caller."""
    assert doors({NETNS: replace(RULES[NETNS], address=None)}) == {}
    without = compile_host(snapshot(CLIENT, settings=replace(SETTINGS, doors=False)))
    assert without.doors == {}
    assert without.rulesets.keys() == {NETNS}


def test_route_where_there_is_no_default_route() -> None:
    """On internal networks, through this host's address there."""
    assert routes(RULES) == {}
    (route,) = compile_host(snapshot(CLIENT, networks=(replace(BRIDGE, internal=True),))).routes.values()
    assert (route.netns, route.gateway, route.vip_range) == (CLIENT.netns, GATEWAY, SETTINGS.vip_range)


def sources(*workloads: Workload, before: HostState | None = None, **fields: Any) -> HostState:
    """Return the state of a host with these containers, after `before`."""
    kept = {} if before is None else {"allocations": before.allocations}
    return compile_host(snapshot(*workloads, **kept, **fields))


def named(state: HostState, caller: IPv4Address) -> str:
    """Return the key of who is seen to call from this address."""
    (key,) = (k for k, a in state.allocations.callers.items() if a == state.sources.addresses[caller])
    return key


def test_each_replica_is_seen_by_an_address_of_its_own() -> None:
    """By its number; one that takes its place is the same caller beside it."""
    service = spec("flask", count=2)
    first = managed(2, service)
    both = sources(first, managed(3, service, replica=1))
    assert [named(both, address(n)) for n in (2, 3)] == ["flask.flask/0", "flask.flask/1"]
    assert both.sources.step == 1 << 21
    rolled = sources(first, managed(4, service, revision="other"), before=both)
    assert rolled.sources.addresses[address(4)] == rolled.sources.addresses[address(2)]
    assert rolled.sources.addresses[address(2)] == both.sources.addresses[address(2)]


def test_containers_of_others_are_numbered_and_keep_their_numbers() -> None:
    """By Docker's name, as long as one of that name is there; a number that is free goes to the next."""
    one, two = (container(n, "flask.flask", to=("apple.orange:80",)) for n in (3, 4))
    both = sources(one, two)
    assert [named(both, address(n)) for n in (3, 4)] == ["flask.flask/0", "flask.flask/1"]
    ended = sources(stopped(one), two, before=both)
    assert ended.allocations is both.allocations, "nothing is written while it is only stopped"
    assert ended.sources.addresses == {address(4): both.sources.addresses[address(4)]}
    new = replace(container(5, "flask.flask"), docker_name="new")
    assert named(sources(stopped(one), two, new, before=ended), address(5)) == "flask.flask/2"
    later = sources(two, new, before=ended)
    assert [named(later, address(n)) for n in (4, 5)] == ["flask.flask/1", "flask.flask/0"]
    renamed = replace(one, docker_name="\N{SNOWMAN}")
    assert sources(renamed).allocations.numbered == {"flask.flask/0": one.id}, "only what the state file takes"


def test_a_number_that_a_replica_has_is_given_up() -> None:
    """Replicas' numbers are theirs on every machine."""
    labelled = container(2, "flask.flask")
    alone = sources(labelled)
    both = sources(labelled, managed(3, spec("flask")), before=alone)
    assert [named(both, address(n)) for n in (2, 3)] == ["flask.flask/1", "flask.flask/0"]


def test_machines_guests_and_the_host_are_callers() -> None:
    """The host is one, whichever of its addresses it calls from; a container counts before others at its address."""
    visitors = Visitors(host=ConnectTo(everything=True), guests=frozenset({address(9), address(3)}))
    machine = Machine(node="m2", address=IPv4Address("10.0.0.2"))
    found = sources(
        CLIENT,
        settings=replace(SETTINGS, visitors=visitors),
        machines=(machine,),
        host_addresses=frozenset({GATEWAY}),
    )
    assert named(found, GATEWAY) == named(found, LOOPBACK) == "host"
    assert named(found, address(9)) == f"guest/{address(9)}"
    assert named(found, machine.address) == "machine/10.0.0.2"
    assert named(found, address(3)) == "flask.flask/0"


def test_those_who_share_a_namespace_are_one_caller() -> None:
    """Nothing tells their connections apart."""
    beside = container(4, "redis.flask", netns=CLIENT.netns, attachments=())
    found = sources(CLIENT, beside)
    assert found.sources.addresses.keys() == {address(3)}
    assert found.allocations.callers.keys() == {"flask.flask/0", "redis.flask/0"}


def test_no_caller_has_an_address_that_is_no_ones_own() -> None:
    """Where the range is too small, callers go without."""
    tiny = replace(SETTINGS, vip_range=IPv4Network("10.9.0.0/29"))
    assert sources(CLIENT, settings=tiny).sources == CallerSources()
