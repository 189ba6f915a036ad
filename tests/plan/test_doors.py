"""Doors and routes follow from rulesets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from appliance.model.network import Door
from appliance.plan.compile import compile_host
from appliance.plan.doors import doors, routes
from tests.plan.cases import BRIDGE, GATEWAY, SETTINGS, address, container, snapshot

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
