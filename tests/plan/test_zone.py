"""Names, and the views of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from appliance.model.facts import Allocations, Attachment, DockerName, DockerNetwork
from appliance.model.names import Name
from appliance.model.network import WorkloadDoor, Zone
from appliance.model.sources import CallerSources
from appliance.model.state import HostState
from appliance.model.visitors import ConnectTo, Visitors
from appliance.plan.containers import MeshContainers, grouped
from appliance.plan.policy import Reach
from appliance.plan.rulesets import GroupRoutes
from appliance.plan.visitors import GUEST_OPTION, HOST_OPTION, VisitorGroup
from appliance.plan.zone import answered_by_docker, dns_addresses, hidden, host_zone
from tests.plan.cases import BRIDGE, GATEWAY, MEMBERS, OWN, SETTINGS, address, container, snapshot

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


def member(number, *called):
    """A container that Docker's DNS calls so: network, name or alias, the container's own name."""
    return replace(MEMBERS[number - 2], called=frozenset(DockerName(*one) for one in called))


def test_what_docker_answers():
    """Names and aliases of two labels, with the network's name too, on networks that somebody made."""
    members = (
        member(2, ("shop", "web", "web"), ("shop", "api.pay", "web"), ("back", "web", "web")),
        member(3, ("shop", "a.b.c", "x"), ("shop", "web..shop", "x"), ("bridge", "pg.db", "x"), ("Back", "pg", "x")),
        member(4),
    )
    assert answered_by_docker(members) == {
        "shop": {
            Name.parse("web.shop"): DockerName("shop", "web", "web"),
            Name.parse("api.pay"): DockerName("shop", "api.pay", "web"),
        },
        "back": {Name.parse("web.back"): DockerName("back", "web", "web")},
        "Back": {Name.parse("pg.back"): DockerName("Back", "pg", "x")},
    }


def test_who_does_not_see_a_name_of_the_mesh():
    """A container on that network whose view has the name; the words say what to change in Docker."""
    web, api, pay = Name.parse("web.shop"), Name.parse("api.pay"), Name.parse("pay.shop")
    on = replace(ONE, attachments=(Attachment(network="shop", address=address(2), gateway=GATEWAY),))
    zone = Zone(suffix="", names={}, views={address(2): frozenset({web, api, pay}), address(3): frozenset({web})})
    found = HostState(zone=zone)
    members = (
        member(2, ("shop", "web", "web"), ("shop", "api.pay", "web")),
        member(3, ("shop", "pay.shop", "Pay.Shop")),
    )
    answered = answered_by_docker(members)
    alias, name, network = hidden(on, found, answered)
    assert (alias.name, name.name, network.name) == (api, pay, web)
    start = "Docker's own DNS (127.0.0.11) answers"
    assert alias.words == (f"{start} api.pay on network shop, where DNS has no door: it is the alias of container web")
    assert alias.remedy == "take the alias api.pay from container web on network shop"
    assert name.words.endswith("it is the name of container Pay.Shop")
    assert name.remedy == "give container Pay.Shop another name in Docker"
    assert network.words.endswith("it is the name of container web, with the network's name behind it")
    assert network.remedy == "give network shop another name, or what is called web there"
    assert hidden(TWO, found, answered) == (), "it is on another network"
    other = HostState(zone=replace(zone, views={address(2): frozenset({B})}))
    assert hidden(on, other, answered) == (), "it does not see them"
    assert hidden(on, HostState(), answered) == ()
    assert on.netns is not None
    door = WorkloadDoor(netns=on.netns, address=address(2), vip_range=IPv4Network("240.0.0.0/4"))
    assert hidden(on, replace(found, doors={on.netns.id: door}), answered) == (), "it has a door"
