"""Docker's networks: which one an address lies in, and which one meshbox makes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from appliance.drivers.docker.network import (
    attach_by_address,
    attach_by_name,
    bridge_address,
    creation_body,
    is_bridge,
    own_network,
)
from appliance.model.facts import DockerNetwork
from appliance.model.finding import Level

BRIDGE = DockerNetwork(
    name="bridge", driver="bridge", subnets=(IPv4Network("172.17.0.0/16"),), gateways=(IPv4Address("172.17.0.1"),)
)
LAN = DockerNetwork(name="lan", driver="macvlan", subnets=(IPv4Network("192.168.7.0/24"),))


def test_attach_by_address():
    """Addresses seen in a namespace lead to their networks; those of unknown networks are told apart."""
    addresses = [IPv4Address(a) for a in ("172.17.0.5", "10.1.1.1", "192.168.7.3")]
    found, foreign = attach_by_address(addresses, [BRIDGE, LAN])
    assert [(a.network, a.gateway) for a in found] == [("bridge", IPv4Address("172.17.0.1"))]
    assert foreign == (IPv4Address("10.1.1.1"),)


def test_attach_by_name():
    """Bridges are known with this host's address there, before the container has one; others are left out."""
    known = {n.name: n for n in (BRIDGE, LAN)}
    (place,) = attach_by_name(("bridge", "lan", "gone"), known)
    assert (place.network, place.address, place.gateway) == ("bridge", None, IPv4Address("172.17.0.1"))


def test_bridge_address_skips_the_other_family():
    """The host's IPv4 address is found also where IPv6 comes first."""
    both = replace(BRIDGE, gateways=(IPv6Address("fd00::1"), IPv4Address("172.17.0.1")))
    assert bridge_address(both) == IPv4Address("172.17.0.1")
    assert bridge_address(None) is None


def test_network_of_others_for_what_is_deployed() -> None:
    """One that meshbox did not make, or that keeps no containers apart, is a warning with its remedy."""
    own = DockerNetwork(name="meshbox", driver="bridge", ours=True, apart=True)
    assert own_network([BRIDGE, own], "meshbox") == own_network([BRIDGE], "meshbox") == []
    for network, words in (
        (replace(own, ours=False), ["not made by meshbox"]),
        (replace(own, apart=False), ["reach each other"]),
        (replace(own, ours=False, apart=False), ["not made by meshbox", "reach each other"]),
    ):
        (finding,) = own_network([BRIDGE, network], "meshbox")
        assert finding.level is Level.WARNING
        assert all(word in finding.words for word in words)
        assert finding.remedy.startswith("docker network rm meshbox")
    assert "not made" not in own_network([replace(own, apart=False)], "meshbox")[0].words


def test_only_a_bridge_reaches_the_proxy():
    """A network that is gone does not."""
    assert is_bridge(BRIDGE)
    assert not is_bridge(LAN)
    assert not is_bridge(None)


def test_the_network_that_meshbox_makes_keeps_containers_apart_and_is_marked():
    """What it is asked for is what it is judged by; a subnet is asked for only where one is given."""
    body = creation_body("meshbox", IPv4Network("10.7.0.0/16"))
    assert body["Options"] == {"com.docker.network.bridge.enable_icc": "false"}
    assert body["Labels"] == {"meshbox.managed": "true"}
    assert (body["Name"], body["Driver"], body["CheckDuplicate"]) == ("meshbox", "bridge", True)
    assert body["IPAM"] == {"Driver": "default", "Config": [{"Subnet": "10.7.0.0/16"}]}
    assert "IPAM" not in creation_body("meshbox", None)
