"""Rules as values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import product

from appliance.model.facts import Allocations, Attachment, DockerNetwork, RegistryPorts
from appliance.model.names import Allowance, Protocol
from appliance.model.network import NetnsId, RegistryGuard, Route
from appliance.model.visitors import ConnectTo, Visitors
from appliance.plan.compile import Compiler, compile_host
from appliance.plan.containers import MeshContainers, grouped
from appliance.plan.policy import Catalogue, Reach
from appliance.plan.rulesets import RouteMaps, host_ruleset, may_call, peers, visitor_rules, workload_rulesets
from appliance.plan.turns import at_once
from appliance.plan.visitors import visitor_groups
from tests.plan.cases import BRIDGE, BRIDGES, GATEWAY, OWN, SETTINGS, address, container, dest, machine, snapshot

APPLE, PEAR = dest("apple.orange:80"), dest("pear.orange:80")
VIPS = {APPLE.name: IPv4Address("240.0.0.1"), PEAR.name: IPv4Address("240.0.0.2")}
BOTH = Allocations(vips=VIPS, ports={APPLE: 20001, PEAR: 20002})
ONE, TWO = container(2, "a.b"), container(3, "c.d")


def groups(*workloads):
    """The namespaces of containers on the bridge."""
    return grouped(MeshContainers().read(snapshot(*workloads)), {"bridge": BRIDGE})


def inside(number: int) -> NetnsId:
    """The namespace of a container."""
    return NetnsId(device=4, inode=number)


def route(destination, port: int) -> Route:
    """The route to a destination."""
    return Route(vip=VIPS[destination.name], port=80, protocol=destination.protocol, proxy_port=port)


def reaching(*destinations) -> Reach:
    """A reach of these destinations."""
    return Reach(frozenset(destinations), frozenset(d.name for d in destinations))


def test_routes_follow_reach_and_ports():
    """A namespace has a route to each destination that its containers reach and that has a port."""
    maps = RouteMaps()
    apple, both = reaching(APPLE), reaching(APPLE, PEAR)
    first = at_once(maps.of(BOTH, groups(ONE, TWO), {ONE.id: apple, TWO.id: both}))
    assert first[inside(2)].routes == {route(APPLE, 20001)}
    assert first[inside(3)].routes == {route(APPLE, 20001), route(PEAR, 20002)}
    again = at_once(maps.of(BOTH, groups(ONE, TWO), {ONE.id: both, TWO.id: both}))
    assert again[inside(2)].routes == {route(APPLE, 20001), route(PEAR, 20002)}
    assert again[inside(3)] is first[inside(3)]
    moved = replace(BOTH, ports={APPLE: 20003})
    last = at_once(maps.of(moved, groups(ONE, TWO), {ONE.id: both, TWO.id: reaching()}))
    assert last[inside(2)].routes == {route(APPLE, 20003)}
    assert last[inside(3)].routes == set()
    assert maps.to([APPLE, PEAR]) == {route(APPLE, 20003)}


def test_an_abandoned_pass_leaves_no_trace():
    """A pass that ends between two turns, as at shutdown, does not hide what moved from the next one."""
    maps = RouteMaps()
    at_once(maps.of(BOTH, groups(ONE), {ONE.id: reaching(APPLE)}))
    moved = replace(BOTH, ports={APPLE: 20003})
    work = maps.of(moved, groups(ONE), {ONE.id: reaching(APPLE)})
    next(work)
    work.close()
    after = at_once(maps.of(moved, groups(ONE), {ONE.id: reaching(APPLE)}))
    assert after[inside(2)].routes == {route(APPLE, 20003)}


def test_shared_namespace_has_the_routes_of_both():
    """The rules cannot tell apart what shares a namespace."""
    guest = container(4, "x.y", netns=ONE.netns, attachments=())
    found = at_once(RouteMaps().of(BOTH, groups(ONE, guest), {ONE.id: reaching(APPLE), guest.id: reaching(PEAR)}))
    assert found[inside(2)].routes == {route(APPLE, 20001), route(PEAR, 20002)}
    assert found[inside(2)].reach == reaching(APPLE, PEAR)


def test_rules_for_a_door_need_the_setting():
    """With doors switched off, rules lead to the host. The address does not matter: it comes after the rules."""
    s = snapshot(ONE)
    routes = at_once(RouteMaps().of(BOTH, groups(ONE), {ONE.id: reaching()}))
    assert workload_rulesets(s, groups(ONE), routes)[inside(2)].door
    off = replace(s, settings=replace(SETTINGS, doors=False))
    assert not workload_rulesets(off, groups(ONE), routes)[inside(2)].door
    bare = tuple(replace(g, address=None) for g in groups(ONE))
    assert workload_rulesets(s, bare, routes)[inside(2)].door


def test_host_ruleset():
    """Workloads and guests are known by address; a LAN that containers share through macvlan is no subnet of ours."""
    lan = DockerNetwork(name="lan", driver="macvlan", subnets=(IPv4Network("10.0.0.0/24"),))
    guests = frozenset({IPv4Address("10.0.0.50")})
    s = snapshot(
        ONE,
        TWO,
        networks=(BRIDGE, lan),
        settings=replace(SETTINGS, visitors=Visitors(guests=guests)),
        machines=(machine("m2", "10.0.0.2"), machine("here", "10.0.0.1")),
    )
    found = host_ruleset(s, groups(ONE, TWO), frozenset({(APPLE.protocol, 20001)}), frozenset({GATEWAY}), None)
    assert found.workloads == {address(2), address(3)} | guests
    assert found.subnets == {IPv4Network("172.18.0.0/16")}
    assert found.peers == found.machines == {IPv4Address("10.0.0.2")}
    assert found.listening == {(APPLE.protocol, 20001)}
    assert found.dns_addresses == {GATEWAY}


def test_who_may_call():
    """A machine that answers may call though it lost its Consul; this machine's own address is no peer's."""
    lost = replace(machine("m2", "10.0.0.2"), healthy=False)
    dead = replace(machine("m3", "10.0.0.3"), healthy=False, answers=False)
    liar = machine("m4", "10.0.0.9")
    assert [may_call(m) for m in (lost, dead, liar)] == [True, False, True]
    s = snapshot(machines=(lost, dead, liar), host_addresses=frozenset({liar.address}))
    assert peers(s) == {lost.address}


def test_visitor_rules():
    """The host and guests have routes of their own; without visitors there are no rules."""
    maps = RouteMaps()
    at_once(maps.of(BOTH, (), {}))
    known = Catalogue(
        destinations={APPLE.name: frozenset({APPLE}), PEAR.name: frozenset({PEAR})},
        services={"orange": frozenset({APPLE.name, PEAR.name})},
    )
    visitors = Visitors(
        host=ConnectTo(everything=True),
        guests=frozenset({IPv4Address("10.0.0.50")}),
        guests_to=ConnectTo(allowances=(Allowance.parse("pear.orange:80"),)),
    )
    s = snapshot(settings=replace(SETTINGS, visitors=visitors))
    found = visitor_rules(s, visitor_groups(s, known), maps)
    assert found.host_routes == {route(APPLE, 20001), route(PEAR, 20002)}
    assert found.guest_routes == {route(PEAR, 20002)}
    assert found.guests == visitors.guests
    assert visitor_rules(snapshot(), (), maps) is None


def test_a_workloads_address_comes_from_its_own_bridges():
    """All of them for a container on several networks; from anywhere only where a bridge of its is not known."""
    both = container(
        3,
        "a.b",
        attachments=(
            Attachment(network="bridge", address=address(3), gateway=GATEWAY),
            Attachment(network="meshbox", address=IPv4Address("172.19.0.3"), gateway=IPv4Address("172.19.0.1")),
        ),
    )
    facts = {"networks": (BRIDGE, OWN), "bridges": BRIDGES}
    found = compile_host(snapshot(container(2, "a.a"), both, **facts)).host_ruleset
    addresses = {address(3), IPv4Address("172.19.0.3")}
    assert found.from_bridges == {("docker0", address(2)), *product(("docker0", "br-own"), addresses)}
    assert found.from_anywhere == frozenset()
    lost = compile_host(snapshot(container(2, "a.a"), both, **facts | {"bridges": BRIDGES[:1]})).host_ruleset
    assert lost.from_bridges == {("docker0", address(2))}
    assert lost.from_anywhere == addresses


def test_the_registrys_ports():
    """All known computers with such ports count but this one; an agent on a Docker network of this host is exempt."""
    others = (machine("here", "10.0.0.1"), machine("m2", "10.0.0.2"))
    told = RegistryPorts(
        ports=frozenset({(Protocol.TCP, 8300)}),
        hosts=frozenset({IPv4Address("10.0.0.1"), IPv4Address("10.0.0.3")}),
        advertised=frozenset({address(9), GATEWAY, IPv4Address("10.0.0.1"), IPv4Address("10.9.9.9")}),
        exempt=frozenset({address(7)}),
    )
    facts = {"networks": (BRIDGE, OWN), "host_addresses": frozenset({IPv4Address("10.0.0.1"), GATEWAY})}
    found = compile_host(snapshot(machines=others, registry_ports=told, **facts)).host_ruleset.registry
    assert found == RegistryGuard(
        ports=told.ports,
        hosts=frozenset({IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")}),
        agents=frozenset({address(7), address(9)}),
        bridges=frozenset({"docker0", "br-own"}),
    )
    assert compile_host(snapshot(machines=others, **facts)).host_ruleset.registry is None


def test_what_the_registry_says_later_changes_the_rules():
    """A compiler that keeps what did not change takes in other ports."""
    compiler = Compiler()
    facts = snapshot()
    assert at_once(compiler.compile(facts)).want.host_ruleset.registry is None
    told = RegistryPorts(ports=frozenset({(Protocol.TCP, 8300)}))
    after = at_once(compiler.compile(replace(facts, registry_ports=told))).want.host_ruleset.registry
    assert after is not None
    assert after.ports == told.ports
