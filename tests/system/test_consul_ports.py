"""Who reaches Consul's gossip and RPC: real rules, in bare namespaces, with a real agent on the host."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest
from nsworld import HOST, HOST6, HOST_OUTSIDE, HOST_OUTSIDE6, NEIGHBOUR, OUTSIDE, REFUSED, SILENCE, WORKLOAD, World

from appliance.config.options import Consul
from appliance.drivers.consul.agent import AgentFacts, refused_ports
from appliance.model.network import HostRuleset, RegistryGuard
from appliance.render.ruleset import change_host, render_host

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

OPEN = HostRuleset(proxy_ports=(20000, 29999), dns_port=53, subnets=frozenset({IPv4Network("172.30.0.0/16")}))
GUARDED = replace(
    OPEN,
    registry=RegistryGuard(
        ports=refused_ports(Consul().refuse, AgentFacts()),
        hosts=frozenset({IPv4Address(OUTSIDE)}),
        bridges=frozenset({"br0"}),
    ),
)
SERVERS = (
    ("gossip", "host", "tcp", 8301),
    ("gossip, UDP", "host", "udp", 8301),
    ("RPC", "host", "tcp", 8300),
    ("HTTP", "host", "tcp", 8500),
    ("gossip outside", "outside", "tcp", 8301),
    ("gossip outside, UDP", "outside", "udp", 8301),
    ("RPC outside", "outside", "tcp", 8300),
    ("a program outside", "outside", "tcp", 8400),
    ("an agent in a container", "neighbour", "tcp", 8301),
    ("the same, UDP", "neighbour", "udp", 8301),
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Servers at Consul's ports, and the rules in force. The rules came as a change, as where options change."""
    with World() as made:
        for server in SERVERS:
            made.serve(*server)
        made.nft("host", render_host(OPEN))
        assert made.probe("workload", "tcp", HOST, 8301) == "gossip"
        made.nft("host", change_host(OPEN, GUARDED))
        yield made


@pytest.mark.parametrize(
    ("sender", "protocol", "address", "port", "gets"),
    [
        ("workload", "tcp", HOST, 8301, REFUSED),
        ("workload", "udp", HOST, 8301, REFUSED),
        ("workload", "tcp", HOST, 8300, REFUSED),
        ("workload", "tcp", HOST_OUTSIDE, 8301, REFUSED),
        ("workload", "udp", HOST_OUTSIDE, 8301, REFUSED),
        ("workload", "tcp", HOST6, 8301, REFUSED),
        ("workload", "udp", HOST6, 8301, REFUSED),
        ("workload", "tcp", HOST_OUTSIDE6, 8300, REFUSED),
        ("workload", "tcp", OUTSIDE, 8301, REFUSED),
        ("workload", "udp", OUTSIDE, 8301, REFUSED),
        ("workload", "tcp", OUTSIDE, 8300, REFUSED),
        ("workload", "tcp", OUTSIDE, 8400, "a program outside"),
        ("workload", "tcp", HOST, 8500, "HTTP"),
        ("outside", "tcp", HOST_OUTSIDE, 8301, "gossip"),
        ("outside", "udp", HOST_OUTSIDE, 8301, "gossip, UDP"),
        ("outside", "tcp", HOST_OUTSIDE6, 8300, "RPC"),
        ("host", "tcp", HOST, 8301, "gossip"),
        ("host", "udp", HOST_OUTSIDE, 8301, "gossip, UDP"),
        ("host", "tcp", OUTSIDE, 8300, "RPC outside"),
        ("outside", "tcp", NEIGHBOUR, 8301, "an agent in a container"),
    ],
)
def test_who_reaches_consul(world: World, sender: str, protocol: str, address: str, port: int, gets: str) -> None:
    """Containers do not, over IPv4 and IPv6, here and on other machines; other machines and the host itself do."""
    assert world.probe(sender, protocol, address, port) == gets


@pytest.mark.parametrize("source", ["203.0.113.7", OUTSIDE])
def test_a_made_up_source_does_not_help(world: World, source: str) -> None:
    """A datagram is gossip whoever sent it. That it came from a bridge decides, not the address that it names."""
    server = world.server("gossip, UDP")
    world.sysctl("host", "net/ipv4/conf/all/rp_filter", "0")
    world.sysctl("host", "net/ipv4/conf/br0/rp_filter", "0")
    world.address("workload", "lo", f"{source}/32", "fd99::9/128")
    try:
        with world.socket("workload", "udp") as sock:
            sock.bind((source, 0))
            sock.sendto(b"forged", (HOST_OUTSIDE, 8301))
        with world.socket("outside", "udp") as sock:
            sock.sendto(b"true", (HOST_OUTSIDE, 8301))
        assert server.recv(100) == b"true"
    finally:
        world.ip("-n", f"{world._prefix}workload", "addr", "flush", "dev", "lo")


def test_an_agent_in_a_container_keeps_its_address(world: World) -> None:
    """It talks to the others, here and elsewhere; its neighbour does not."""
    inside = replace(GUARDED.registry, agents=frozenset({IPv4Address(NEIGHBOUR)}))
    world.nft("host", change_host(GUARDED, replace(GUARDED, registry=inside)))
    try:
        assert world.probe("neighbour", "tcp", OUTSIDE, 8301) == "gossip outside"
        assert world.probe("neighbour", "udp", HOST, 8301) == "gossip, UDP"
        assert world.probe("workload", "tcp", OUTSIDE, 8301) == REFUSED
    finally:
        world.nft("host", render_host(GUARDED))


def test_published_ports_of_an_agent_in_a_container(world: World) -> None:
    """Docker leads the host's port 8301 to it: other machines get there, containers do not."""
    publish = f"""
        table ip docker {{
            chain prerouting {{
                type nat hook prerouting priority -100;
                ip daddr {{ {HOST_OUTSIDE}, {HOST} }} meta l4proto {{ tcp, udp }} th dport 8301 dnat to {NEIGHBOUR}:8301
            }}
        }}
    """
    world.nft("host", publish)
    try:
        assert world.probe("outside", "tcp", HOST_OUTSIDE, 8301) == "an agent in a container"
        assert world.probe("workload", "udp", HOST_OUTSIDE, 8301) in {REFUSED, SILENCE}
        world.nft("host", render_host(OPEN))
        assert world.probe("workload", "udp", HOST_OUTSIDE, 8301) == "the same, UDP"
    finally:
        world.nft("host", "delete table ip docker")
        world.nft("host", render_host(GUARDED))


def test_machines_talk_through_this_one(world: World) -> None:
    """A computer that is no agent is refused on its way to another machine; an agent is not."""
    elsewhere = replace(GUARDED.registry, hosts=frozenset({IPv4Address(WORKLOAD)}), bridges=frozenset())
    rules = replace(GUARDED, subnets=frozenset(), registry=elsewhere)
    world.serve("gossip behind", "workload", "tcp", 8301)
    try:
        world.nft("host", render_host(rules))
        assert world.probe("outside", "tcp", WORKLOAD, 8301) == REFUSED
        hosts = frozenset({IPv4Address(WORKLOAD), IPv4Address(OUTSIDE)})
        world.nft("host", render_host(replace(rules, registry=replace(elsewhere, hosts=hosts))))
        assert world.probe("outside", "tcp", WORKLOAD, 8301) == "gossip behind"
    finally:
        world.nft("host", render_host(GUARDED))


def test_refusals_are_counted(world: World) -> None:
    """The table says how often, and what that is."""
    world.probe("workload", "tcp", HOST, 8301)
    listed = world.list_table("host")
    line = next(line for line in listed.splitlines() if "a container at Consul's ports" in line)
    assert "packets 0 " not in line
