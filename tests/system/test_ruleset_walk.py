"""Packets walked through both rulesets in real network namespaces: who gets what, and what is refused at once."""

from __future__ import annotations

import errno
import re
import socket
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

import pytest
from nsworld import (
    HOST,
    HOST6,
    HOST_OUTSIDE,
    HOST_OUTSIDE6,
    NEIGHBOUR,
    NEIGHBOUR6,
    OUTSIDE,
    OUTSIDE6,
    REFUSED,
    WORKLOAD,
    WORKLOAD6,
    World,
)

from appliance.model.names import Protocol
from appliance.model.network import HostRuleset, Netns, NetnsId, Route, VisitorRules, WorkloadRuleset
from appliance.render.ruleset import REMOVE, change_host, change_workload, render_host, render_workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.system

VIP = "241.1.1.1"
RULES = WorkloadRuleset(
    netns=Netns(id=NetnsId(device=4, inode=1), path="/netns/1"),
    proxy=IPv4Address(HOST),
    dns_port=53,
    vip_range=IPv4Network("240.0.0.0/4"),
    proxy_ports=(20000, 29999),
    routes=frozenset(
        {
            Route(vip=IPv4Address(VIP), port=8080, protocol=Protocol.TCP, proxy_port=20001),
            Route(vip=IPv4Address(VIP), port=8080, protocol=Protocol.UDP, proxy_port=20002),
        }
    ),
    gateways=frozenset({IPv4Address(HOST), IPv6Address(HOST6)}),
    hosts=frozenset({IPv4Address(HOST), IPv4Address(HOST_OUTSIDE)}),
    subnets=frozenset({IPv4Network("172.30.0.0/16"), IPv6Network("fd30::/64")}),
    published=frozenset({(Protocol.TCP, 8088), (Protocol.UDP, 8088)}),
)
GUARD = HostRuleset(
    proxy_ports=(20000, 29999),
    dns_port=53,
    workloads=frozenset({IPv4Address(WORKLOAD)}),
    from_anywhere=frozenset({IPv4Address(WORKLOAD)}),
    published=frozenset({(IPv4Address(WORKLOAD), Protocol.TCP, 8088), (IPv4Address(WORKLOAD), Protocol.UDP, 8088)}),
    dns_addresses=frozenset({IPv4Address(HOST)}),
    subnets=frozenset({IPv4Network("172.30.0.0/16")}),
    listening=frozenset({(Protocol.TCP, 20001), (Protocol.UDP, 20002), (Protocol.TCP, 20003)}),
)

SERVERS = (
    ("the TCP listener", "host", "tcp", 20001),
    ("the UDP listener", "host", "udp", 20002),
    ("another listener", "host", "tcp", 20003),
    ("another program", "host", "tcp", 20500),
    ("another program, UDP", "host", "udp", 20003),
    ("DNS over TCP", "host", "tcp", 53),
    ("DNS over UDP", "host", "udp", 53),
    ("the host", "host", "tcp", 8000),
    ("the host, UDP", "host", "udp", 8000),
    ("the outside", "outside", "tcp", 80),
    ("the outside, UDP", "outside", "udp", 80),
    ("an outside resolver", "outside", "udp", 53),
    ("the neighbour", "neighbour", "tcp", 80),
    ("the neighbour, UDP", "neighbour", "udp", 80),
    ("the workload", "workload", "tcp", 80),
    ("the workload, UDP", "workload", "udp", 80),
    ("its published port", "workload", "tcp", 8088),
    ("its published port, UDP", "workload", "udp", 8088),
)


@pytest.fixture(scope="module", params=[False, True], ids=["", "door"])
def rules(request: pytest.FixtureRequest) -> WorkloadRuleset:
    """The workload's rules, without a door of the data plane and with one."""
    return replace(RULES, door=request.param, address=IPv4Address(WORKLOAD))


@pytest.fixture(scope="module")
def world(rules: WorkloadRuleset) -> Iterator[World]:
    """Servers everywhere, and the rules in force."""
    with World() as made:
        for name in ("host", "workload"):
            made.sysctl(name, "net/ipv4/icmp_ratelimit", "0")  # else few errors a second are told (icmp(7))
        for server in SERVERS:
            made.serve(*server)
        if rules.door:
            made.door("the door", "workload")
        made.nft("workload", render_workload(rules))
        made.nft("host", render_host(GUARD))
        yield made


@pytest.mark.parametrize(
    ("protocol", "address", "port", "gets"),
    [
        ("tcp", VIP, 8080, "the TCP listener"),
        ("udp", VIP, 8080, "the UDP listener"),
        ("tcp", VIP, 8081, REFUSED),
        ("udp", VIP, 8081, REFUSED),
        ("tcp", VIP, 53, REFUSED),
        ("udp", VIP, 53, REFUSED),
        ("tcp", "241.1.1.2", 8080, REFUSED),
        ("udp", "241.1.1.2", 8080, REFUSED),
        ("tcp", HOST, 20001, REFUSED),
        ("udp", HOST, 20002, REFUSED),
        ("tcp", HOST, 20003, REFUSED),
        ("tcp", HOST_OUTSIDE, 20001, REFUSED),
        ("udp", HOST_OUTSIDE, 20002, REFUSED),
        ("tcp", HOST, 20500, "another program"),
        ("tcp", HOST_OUTSIDE, 20500, "another program"),
        ("udp", HOST, 20003, "another program, UDP"),
        ("tcp", HOST, 8000, "the host"),
        ("udp", HOST, 8000, "the host, UDP"),
        ("tcp", HOST_OUTSIDE, 8000, "the host"),
        ("tcp", HOST6, 8000, "the host"),
        ("tcp", NEIGHBOUR, 80, REFUSED),
        ("udp", NEIGHBOUR, 80, REFUSED),
        ("tcp", NEIGHBOUR6, 80, REFUSED),
        ("udp", NEIGHBOUR6, 80, REFUSED),
        ("tcp", OUTSIDE, 80, "the outside"),
        ("udp", OUTSIDE, 80, "the outside, UDP"),
        ("tcp", OUTSIDE6, 80, "the outside"),
        ("udp", OUTSIDE6, 80, "the outside, UDP"),
        ("tcp", OUTSIDE, 81, REFUSED),
        ("udp", OUTSIDE, 81, REFUSED),
        ("tcp", OUTSIDE, 53, "DNS over TCP"),
        ("udp", OUTSIDE, 53, "DNS over UDP"),
        ("udp", HOST, 53, "DNS over UDP"),
        ("udp", NEIGHBOUR, 53, "DNS over UDP"),
        ("tcp", "127.0.0.1", 80, "the workload"),
        ("udp", "127.0.0.1", 80, "the workload, UDP"),
        ("udp", "127.0.0.11", 53, REFUSED),
        ("tcp", WORKLOAD, 80, "the workload"),
        ("tcp", "::1", 80, "the workload"),
    ],
)
def test_what_a_workload_reaches(world, rules, protocol, address, port, gets):
    """Declared destinations and the outside world; all else that is ours or a neighbour's is refused at once."""
    if rules.door:
        gets = {"the TCP listener": "the door", "the UDP listener": "the door, UDP"}.get(gets, gets)
    assert world.probe("workload", protocol, address, port) == gets


@pytest.mark.parametrize(
    ("sender", "protocol", "address", "port", "gets"),
    [
        ("host", "tcp", WORKLOAD, 80, "the workload"),
        ("host", "udp", WORKLOAD, 80, "the workload, UDP"),
        ("host", "tcp", WORKLOAD6, 80, "the workload"),
        ("neighbour", "tcp", WORKLOAD, 80, REFUSED),
        ("neighbour", "udp", WORKLOAD, 80, REFUSED),
        ("neighbour", "tcp", WORKLOAD6, 80, REFUSED),
        ("neighbour", "udp", WORKLOAD6, 80, REFUSED),
        ("neighbour", "tcp", WORKLOAD, 8088, "its published port"),
        ("outside", "tcp", WORKLOAD, 8088, "its published port"),
        ("outside", "udp", WORKLOAD, 8088, "its published port, UDP"),
        ("outside", "tcp", WORKLOAD, 80, REFUSED),
        ("outside", "udp", WORKLOAD, 80, REFUSED),
    ],
)
def test_who_reaches_a_workload(world, sender, protocol, address, port, gets):
    """The proxy, and everybody the published ports; anybody else is refused at once."""
    assert world.probe(sender, protocol, address, port) == gets


@pytest.mark.parametrize(
    ("sender", "protocol", "address", "port", "gets"),
    [
        ("host", "tcp", "127.0.0.1", 20001, "the TCP listener"),
        ("host", "tcp", HOST_OUTSIDE, 20001, "the TCP listener"),
        ("neighbour", "tcp", HOST, 20001, REFUSED),
        ("neighbour", "udp", HOST, 20002, REFUSED),
        ("neighbour", "tcp", HOST_OUTSIDE, 20001, REFUSED),
        ("outside", "tcp", HOST_OUTSIDE, 20001, REFUSED),
        ("outside", "udp", HOST_OUTSIDE, 20002, REFUSED),
        ("outside", "tcp", HOST, 20001, REFUSED),
        ("outside", "tcp", HOST_OUTSIDE, 20500, "another program"),
        ("outside", "udp", HOST_OUTSIDE, 20003, "another program, UDP"),
        ("neighbour", "tcp", HOST, 20500, "another program"),
        ("outside", "tcp", HOST_OUTSIDE, 8000, "the host"),
        ("outside", "tcp", HOST_OUTSIDE6, 20001, "the TCP listener"),
        ("neighbour", "udp", HOST, 53, "DNS over UDP"),
        ("neighbour", "tcp", HOST, 53, "DNS over TCP"),
        ("outside", "udp", HOST, 53, REFUSED),
        ("outside", "udp", HOST_OUTSIDE, 53, "DNS over UDP"),
    ],
)
def test_who_reaches_the_proxy(world, sender, protocol, address, port, gets):
    """Workloads, machines of the mesh, and the host itself; a program with a port in our range is left alone."""
    assert world.probe(sender, protocol, address, port) == gets


UNSERVED = frozenset({(Protocol.TCP, 20001), (Protocol.UDP, 20002)})


def answers(world: World, name: str, address: str, port: int) -> set[int | None]:
    """Return the errors of 20 connections, and of datagrams sent: as where no program listens, sending is none."""
    found: set[int | None] = set()
    for _ in range(20):
        with world.socket(name, "tcp") as sock:
            found.add(sock.connect_ex((address, port)))
    with world.socket(name, "udp") as sock:
        sock.connect((address, port if port == 8080 else port + 1))
        for _ in range(2):
            sock.send(b"question")
            try:
                sock.recv(100)
            except OSError as error:
                found.add(error.errno)
    return found


def test_what_nothing_serves_is_refused_as_where_no_program_listens(world, rules):
    """Through the door and through the host, from the first packet on; what is open goes on, and then it works."""
    closed = replace(rules, closed=RULES.routes if rules.door else frozenset())
    server = world.server("the door" if rules.door else "the TCP listener")
    with world.socket("workload", "tcp") as open_one:
        open_one.connect((VIP, 8080))
        with server.accept()[0] as accepted:
            world.nft("host", change_host(GUARD, replace(GUARD, closed=UNSERVED)))
            world.nft("workload", change_workload(rules, closed))
            try:
                assert answers(world, "workload", VIP, 8080) == {errno.ECONNREFUSED}
                open_one.sendall(b"question")
                assert accepted.recv(100) == b"question"
                counted = world.list_table("workload") + world.list_table("host")
                assert re.search(r'counter packets [1-9].*"nothing serves it"', counted)
            finally:
                world.nft("workload", change_workload(closed, rules))
                world.nft("host", change_host(replace(GUARD, closed=UNSERVED), GUARD))
    for protocol in ("tcp", "udp"):
        assert world.probe("workload", protocol, VIP, 8080) != REFUSED


def test_before_the_door_is_open_the_host_refuses(world, rules):
    """Rules for a door stand before anything leads there."""
    world.nft("host", render_host(replace(GUARD, closed=UNSERVED)))
    route = ("local", "240.0.0.0/4", "dev", "lo")
    if rules.door:
        world.ip("-n", world._name("workload"), "route", "del", *route)
    world.nft("workload", render_workload(replace(rules, closed=RULES.routes)))
    try:
        assert answers(world, "workload", VIP, 8080) == {errno.ECONNREFUSED}
    finally:
        world.nft("workload", render_workload(rules))
        world.nft("host", render_host(GUARD))
        if rules.door:
            world.ip("-n", world._name("workload"), "route", "add", *route, "src", WORKLOAD)


def test_machines_are_refused_what_no_container_here_serves(world):
    """Whether or not others serve it for callers of this host; those are let in meanwhile, and so are peers else."""
    peer = replace(GUARD, peers=frozenset({IPv4Address(OUTSIDE)}), closed_to_peers=UNSERVED)
    world.nft("host", render_host(peer))
    try:
        assert answers(world, "outside", HOST_OUTSIDE, 20001) == {errno.ECONNREFUSED}
        assert world.probe("host", "tcp", "127.0.0.1", 20001) == "the TCP listener"
        world.nft("host", change_host(peer, replace(peer, closed_to_peers=frozenset(), closed=UNSERVED)))
        assert world.probe("outside", "tcp", HOST_OUTSIDE, 20001) == "the TCP listener"
        assert world.probe("outside", "udp", HOST_OUTSIDE, 20002) == "the UDP listener"
    finally:
        world.nft("host", render_host(GUARD))


def test_the_host_and_its_guests_are_refused_what_nothing_serves(world):
    """By what they dial, a virtual IP; other programs with ports in the range are left alone."""
    visitors = VisitorRules(
        vip_range=RULES.vip_range,
        host_routes=RULES.routes,
        guest_routes=RULES.routes,
        guests=frozenset({IPv4Address(OUTSIDE)}),
    )
    guard = replace(GUARD, visitors=visitors, from_anywhere=GUARD.from_anywhere | visitors.guests)
    guard = replace(guard, workloads=GUARD.workloads | visitors.guests)
    routes = (
        ("host", ("240.0.0.0/4", "dev", "lo", "src", "127.0.0.1")),
        ("outside", ("240.0.0.0/4", "via", HOST_OUTSIDE)),
    )
    for name, route in routes:
        world.ip("-n", world._name(name), "route", "add", *route)
    try:
        world.nft("host", render_host(guard))
        for name in ("host", "outside"):
            assert world.probe(name, "tcp", VIP, 8080) == "the TCP listener"
        world.nft("host", change_host(guard, replace(guard, closed=UNSERVED)))
        for name in ("host", "outside"):
            assert answers(world, name, VIP, 8080) == {errno.ECONNREFUSED}
        assert world.probe("host", "tcp", "127.0.0.1", 20500) == "another program"
    finally:
        world.nft("host", render_host(GUARD))
        for name, route in routes:
            world.ip("-n", world._name(name), "route", "del", *route)


def test_machines_of_the_mesh_reach_the_proxy_but_not_the_mesh_dns(world):
    """A peer is let through to the listeners, and to nothing else that is guarded."""
    peer = replace(GUARD, peers=frozenset({IPv4Address(OUTSIDE)}))
    world.nft("host", render_host(peer))
    try:
        assert world.probe("outside", "tcp", HOST_OUTSIDE, 20001) == "the TCP listener"
        assert world.probe("outside", "udp", HOST, 53) == REFUSED
    finally:
        world.nft("host", render_host(GUARD))


def test_containers_do_not_go_around_the_proxy_of_another_machine(world):
    """They would arrive there in this host's name; that the other machine may not call here makes no difference."""
    ports = replace(GUARD, proxy_ports=(80, 80))
    try:
        for peers in (frozenset({IPv4Address(OUTSIDE)}), frozenset()):
            world.nft("host", render_host(replace(ports, peers=peers, machines=frozenset({IPv4Address(OUTSIDE)}))))
            assert world.probe("neighbour", "tcp", OUTSIDE, 80) == REFUSED
            assert world.probe("neighbour", "udp", OUTSIDE, 80) == REFUSED
        world.nft("host", render_host(ports))
        assert world.probe("neighbour", "tcp", OUTSIDE, 80) == "the outside"
    finally:
        world.nft("host", render_host(GUARD))


def test_connection_of_another_program_outlives_that_its_port_is_taken_for_the_proxys(world):
    """The proxy finds out that a port is taken when it binds; what the other program serves must not be cut by that."""
    server = world.server("another program")
    with world.socket("outside", "tcp") as sock:
        sock.connect((HOST_OUTSIDE, 20500))
        accepted, _ = server.accept()
        world.nft("host", render_host(replace(GUARD, listening=GUARD.listening | {(Protocol.TCP, 20500)})))
        try:
            with accepted:
                sock.sendall(b"question")
                assert accepted.recv(100) == b"question"
            assert world.probe("outside", "tcp", HOST_OUTSIDE, 20500) == REFUSED
        finally:
            world.nft("host", render_host(GUARD))


def test_open_datagram_flow_ends_with_its_allowance(world, rules):
    """What was redirected once is refused when its route goes, and reaches nobody who has the port then."""
    with world.socket("workload", "udp") as sock:
        sock.connect((VIP, 8080))
        sock.send(b"question")
        world.server("the door, UDP" if rules.door else "the UDP listener").recvfrom(100)
        world.nft("workload", render_workload(replace(rules, routes=frozenset())))
        try:
            with pytest.raises(OSError, match="not permitted"):
                sock.send(b"question")
        finally:
            world.nft("workload", render_workload(rules))


@pytest.mark.parametrize(
    ("protocol", "port", "gets"),
    [
        ("tcp", 80, REFUSED),
        ("udp", 80, REFUSED),
        ("tcp", 8088, "its published port"),
        ("udp", 8088, "its published port, UDP"),
    ],
)
def test_containers_of_other_networks_and_other_computers_are_refused_on_the_way(world, rules, protocol, port, gets):
    """Before Docker drops it in silence; replies, the outside and what Docker publishes pass."""
    world.nft("workload", REMOVE)
    try:
        world.nft("host", render_host(replace(GUARD, workloads=frozenset())))
        assert world.probe("outside", "tcp", WORKLOAD, 80) == "the workload"
        for networks in (GUARD.subnets, GUARD.subnets | {IPv4Network("198.51.100.0/24")}):
            world.nft("host", render_host(replace(GUARD, subnets=networks)))
            assert world.probe("outside", protocol, WORKLOAD, port) == gets
            with world.socket("workload", "tcp") as sock:
                sock.connect((OUTSIDE, 80))
                world.server("the outside").accept()[0].close()
    finally:
        world.nft("host", render_host(GUARD))
        world.nft("workload", render_workload(rules))


def test_workloads_reach_the_mesh_dns_also_from_a_network_that_is_not_dockers(world):
    """Where no network of containers is known, known workloads still ask, and nobody else does."""
    world.nft("host", render_host(replace(GUARD, subnets=frozenset())))
    try:
        assert world.probe("workload", "udp", OUTSIDE, 53) == "DNS over UDP"
        assert world.probe("neighbour", "udp", HOST, 53) == REFUSED
    finally:
        world.nft("host", render_host(GUARD))


def flood(world: World, name: str, sources: Sequence[str], number: int) -> int:
    """Send so many datagrams to DNS from these addresses, made up or not; return how many of them got there."""
    server = world.server("DNS over UDP")
    server.setblocking(False)
    got = 0
    with ExitStack() as stack:
        socks = [stack.enter_context(world.socket(name, "udp")) for _ in sources]
        for sock, source in zip(socks, sources, strict=True):
            sock.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
            sock.bind((source, 0))
        for at in range(number):
            socks[at % len(socks)].sendto(b"flood", (HOST, 53))
            if at % 50 == 49:
                with suppress(BlockingIOError):
                    while server.recv(100):
                        got += 1
    return got


def test_a_workload_that_asks_without_pause_loses_its_own_questions(world):
    """Beyond a rate; others are heard meanwhile, and it is heard again as soon as it asks less."""
    both = GUARD.workloads | {IPv4Address(NEIGHBOUR)}
    world.nft("host", render_host(replace(GUARD, workloads=both, from_anywhere=both)))
    try:
        assert flood(world, "workload", [WORKLOAD], 500) == 500, "as many at once as a busy program asks"
        assert flood(world, "workload", [WORKLOAD], 20_000) < 18_000
        for protocol, heard in (("udp", "DNS over UDP"), ("tcp", "DNS over TCP")):
            assert world.probe("neighbour", protocol, HOST, 53) == heard
        threading.Event().wait(0.01)
        assert world.probe("workload", "udp", OUTSIDE, 53) == "DNS over UDP"
        assert 'comment "asks too often"' in world.list_table("host")
    finally:
        world.nft("host", render_host(GUARD))


def test_askers_that_somebody_makes_up_are_few_at_a_time(world):
    """However many addresses of the network they have; a workload is heard meanwhile."""
    made_up = [f"172.30.7.{number}" for number in range(1, 61)]
    assert flood(world, "neighbour", made_up, 10_000) < 6_000
    assert world.probe("workload", "udp", OUTSIDE, 53) == "DNS over UDP"


def test_the_dns_port_may_lie_among_the_proxys_ports(world, rules):
    """It is the one port there that needs no virtual IP."""
    world.nft("workload", render_workload(replace(rules, dns_port=20500)))
    try:
        assert world.probe("workload", "tcp", OUTSIDE, 53) == "another program"
    finally:
        world.nft("workload", render_workload(rules))


def test_the_host_itself_may_dial_out_from_a_port_in_the_range(world):
    """The guard looks at who began: replies to the host's own connections come through."""
    with world.socket("host", "udp") as sock:
        sock.bind((HOST_OUTSIDE, 20010))
        sock.connect((OUTSIDE, 80))
        sock.send(b"question")
        server = world.server("the outside, UDP")
        question, sender = server.recvfrom(100)
        server.sendto(b"answer", sender)
        assert (question, sock.recv(100)) == (b"question", b"answer")


def test_link_local_addresses_are_no_way_round(world):
    """A neighbour is not reached through fe80:: either, while neighbour discovery goes on."""
    address = world.link_local("neighbour")
    with world.socket("workload", "tcp", v6=True) as sock, pytest.raises(OSError, match="refused"):
        sock.connect((address, 80, 0, world.interface("workload", "eth0")))


def test_refusals_are_counted_by_reason(world):
    """An operator reads from the table why something is refused, and how often."""
    world.probe("workload", "tcp", "241.1.1.2", 8080)
    table = world.list_table("workload").splitlines()
    counted = [line for line in table if 'comment "no such destination in connect_to"' in line]
    assert [line for line in counted if "packets 0" not in line]
