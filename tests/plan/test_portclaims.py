"""Who may send what from which port."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from appliance.plan.containers import MeshContainers
from appliance.plan.portclaims import PortClaims, claims, network_bridges
from tests.plan.cases import BRIDGE, BRIDGES, GATEWAY, MEMBERS, SETTINGS, container, snapshot

LINK_LOCAL = IPv6Address("fe80::42:acff:fe12:2")


def test_what_docker_gave_is_claimed_and_what_the_kernel_makes_of_it():
    """MAC, addresses, and the link-local address of that MAC, from the container's port."""
    six = IPv6Address("fd00::2")
    found = claims(snapshot(members=(replace(MEMBERS[0], addresses=MEMBERS[0].addresses | {six}),)))
    assert found.macs == {("veth2", 0x0242AC120002)}
    assert found.addresses == {("veth2", IPv4Address("172.18.0.2"))}
    assert found.addresses6 == {("veth2", six), ("veth2", LINK_LOCAL)}


def test_each_address_from_each_port_of_its_own():
    """Linux answers for all its addresses on all its interfaces."""
    member = replace(
        MEMBERS[0], ports=frozenset({"a", "b"}), addresses=frozenset({IPv4Address("10.0.0.2"), IPv4Address("10.1.0.2")})
    )
    assert len(claims(snapshot(members=(member,))).addresses) == 4


def test_the_host_claims_what_it_really_has_on_dockers_bridges():
    """Not what Docker says of gateways, and nothing on bridges of others."""
    found = claims(snapshot(bridges=BRIDGES))
    assert found.host_addresses == {GATEWAY}
    assert found.host_macs == {0x0242AC120001}
    assert found.host_addresses6 == {IPv6Address("fe80::42:acff:fe12:1")}
    elsewhere = (replace(BRIDGES[0], addresses=frozenset()),)
    assert claims(snapshot(bridges=elsewhere)).host_addresses == frozenset()


def test_a_bridge_counts_where_the_host_has_it():
    """Docker may run elsewhere, or name it otherwise."""
    assert network_bridges((BRIDGE,), BRIDGES) == {"bridge": BRIDGES[0]}
    assert network_bridges((BRIDGE,), ()) == {}
    assert network_bridges((replace(BRIDGE, bridge=""),), BRIDGES) == {}


@pytest.mark.parametrize(
    ("workloads", "settings", "there"),
    [
        ((container(2, "a.a"),), SETTINGS, True),
        ((), SETTINGS, False),
        ((container(2, "a.a", problem="host network"),), SETTINGS, False),
        ((container(2, "a.a"),), replace(SETTINGS, port_claims=False), False),
    ],
)
def test_only_where_there_is_something_to_protect(workloads, settings, there):
    """A host without containers of the mesh is left as it is; so is one whose kernel cannot do it."""
    s = snapshot(*workloads, settings=settings, members=MEMBERS, bridges=BRIDGES)
    made = PortClaims()
    found = made.of(s, MeshContainers().read(s))
    assert (found is not None) == there
    assert made.of(s, MeshContainers().read(s)) is found
