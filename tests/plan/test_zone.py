"""Names, and the views of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from appliance.model.facts import Allocations, DockerNetwork
from appliance.model.names import Name
from appliance.model.sources import CallerSources
from appliance.model.visitors import ConnectTo, Visitors
from appliance.plan.containers import MeshContainers, grouped
from appliance.plan.policy import Reach
from appliance.plan.rulesets import GroupRoutes
from appliance.plan.visitors import GUEST_OPTION, HOST_OPTION, VisitorGroup
from appliance.plan.zone import dns_addresses, host_zone
from tests.plan.cases import BRIDGE, GATEWAY, OWN, SETTINGS, address, container, snapshot

A, B = Name.parse("a.b"), Name.parse("c.d")
ONE, TWO = container(2, "a.b"), container(3, "c.d")
GROUPS = grouped(MeshContainers().read(snapshot(ONE, TWO)), {"bridge": BRIDGE})
VIPS = {A: IPv4Address("240.0.0.1"), B: IPv4Address("240.0.0.2")}
SOURCES = CallerSources(step=8, addresses={address(2): IPv4Address("240.0.0.3")})
GUEST = IPv4Address("10.0.0.50")


def zone(s, *visitors, seen=frozenset({A, B}), vips=VIPS, complete=True):
    """The zone of two containers: one sees what `seen` says, the other only itself."""
    reaches = (Reach(frozenset(), seen), Reach(frozenset(), frozenset({B})))
    routes = {g.netns: GroupRoutes(reach=r, routes=frozenset()) for g, r in zip(GROUPS, reaches, strict=True)}
    return host_zone(s, GROUPS, routes, visitors, Allocations(vips=vips), SOURCES, complete=complete)


def test_views():
    """Each asker sees what its namespace reaches, and is known by its name."""
    found = zone(snapshot(ONE, TWO))
    assert found.views == {address(2): {A, B}, address(3): {B}}
    assert found.askers == {address(2): A, address(3): B}
    assert (found.names, found.sources) == (VIPS, SOURCES)
    assert (found.suffix, found.vip_range) == (SETTINGS.suffix, SETTINGS.vip_range)


def test_names_without_an_address_are_in_no_view():
    """Where a range is too small, nobody is told of a name that would resolve to nothing."""
    assert zone(snapshot(), vips={B: VIPS[B]}, complete=False).views == {address(2): {B}, address(3): {B}}


def test_visitors_have_views():
    """The host and guests see what they reach; an address that is a workload's as well sees both."""
    host = VisitorGroup(
        option=HOST_OPTION, addresses=frozenset({GATEWAY, address(3)}), reach=Reach(frozenset(), frozenset({A}))
    )
    guest = VisitorGroup(option=GUEST_OPTION, addresses=frozenset({GUEST}), reach=Reach(frozenset(), frozenset()))
    found = zone(snapshot(), host, guest)
    assert found.views == {GATEWAY: {A}, address(2): {A, B}, address(3): {A, B}, GUEST: set()}
    assert found.visitors == {GATEWAY: HOST_OPTION, address(3): HOST_OPTION, GUEST: GUEST_OPTION}


def test_askers_in_the_lan_do_not_wait():
    """A network whose subnet is the LAN itself is none in which an asker may be a container to come."""
    lan = DockerNetwork(name="lan", driver="ipvlan", subnets=(IPv4Network("10.0.0.0/24"),))
    assert zone(snapshot(networks=(BRIDGE, lan))).subnets == {IPv4Network("172.18.0.0/16")}


def test_dns_addresses():
    """DNS answers on the networks of workloads, on meshbox's own, and where visitors ask while there are some."""
    own = IPv4Address("172.19.0.1")
    listen = frozenset({IPv4Address("10.0.0.1")})
    s = snapshot(
        networks=(BRIDGE, OWN), settings=replace(SETTINGS, visitors=Visitors(host=ConnectTo(), dns_listen=listen))
    )
    host = VisitorGroup(option=HOST_OPTION, addresses=frozenset({GATEWAY}), reach=Reach())
    assert dns_addresses(s, (), ()) == {own}
    assert dns_addresses(s, GROUPS, ()) == {own, GATEWAY}
    assert dns_addresses(s, GROUPS, (host,)) == {own, GATEWAY} | listen
