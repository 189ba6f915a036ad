"""What the data plane and the rulesets are made of."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from appliance.model.names import Destination
from appliance.model.network import DATAGRAM_DOORS, Backend, Listener, NetnsId, WorkloadRuleset

ONE, TWO = IPv4Address("172.18.0.2"), IPv4Address("172.18.0.3")


def test_namespaces_in_words():
    """Device and inode, as an operator sees them in /proc; they sort by both."""
    assert str(NetnsId(device=4, inode=4026532008)) == "4:4026532008"
    assert NetnsId(device=4, inode=9) < NetnsId(device=5, inode=1)


def test_same_access():
    """Backends do not matter; callers and peers do, whether or not they are the same objects."""
    listener = Listener(destination=Destination.parse("a.b:80"), port=20000, callers=frozenset({ONE}))
    backend = Backend(address=TWO, port=80, local=True)
    assert listener.same_access(replace(listener, backends=(backend,)))
    assert listener.same_access(replace(listener, callers=frozenset([ONE, ONE])))
    assert not listener.same_access(replace(listener, callers=frozenset({ONE, TWO})))
    assert not listener.same_access(replace(listener, peers=frozenset({TWO})))


def test_backends_sort_by_address_and_port():
    """An order that every pass finds again, so that equal sets of backends are equal tuples."""
    near = Backend(address=ONE, port=81, local=True)
    assert sorted([Backend(address=TWO, port=80, local=True), near]) == [
        near,
        Backend(address=TWO, port=80, local=True),
    ]


def test_dialler_is_the_part_that_no_name_gets():
    """The data plane dials containers from the first sixteenth of the virtual IPs."""
    rules = WorkloadRuleset(
        netns=NetnsId(device=4, inode=1),
        proxy=ONE,
        dns_port=53,
        vip_range=IPv4Network("240.0.0.0/4"),
        proxy_ports=(20000, 29999),
    )
    assert rules.dialler == IPv4Network("240.0.0.0/8")


def test_every_proxy_port_has_its_datagram_door():
    """A port number fits into the last two octets."""
    assert DATAGRAM_DOORS.num_addresses == 2**16
    assert DATAGRAM_DOORS.network_address + 65535 in DATAGRAM_DOORS
