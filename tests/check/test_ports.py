"""Ports and addresses that other programs hold, or that this host does not have."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

import pytest

from appliance.check import ports
from appliance.model.finding import Level

HERE = IPv4Address("127.77.66.55")
"""An address of this host from which no other program dials, so that all its ports are free."""


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_dns_port_that_is_taken(kind) -> None:
    """A program that has the port on the gateway, or on all addresses, is noticed."""
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("0.0.0.0", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        for gateways in ([HERE], []):
            found = ports.dns_port(port, gateways)
            assert found.level is Level.FAILED
            assert "set dns_port" in found.remedy
    assert ports.dns_port(port, [HERE]).level is Level.OK


def test_proxy_ports_in_use() -> None:
    """Some taken ports are passed over with a warning; when none is left it cannot run."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = ports.listening_ports()
    assert port in taken
    assert ports.proxy_ports(port, port, taken=taken).level is Level.FAILED
    assert ports.proxy_ports(port, port + 1, taken=frozenset({port})).level is Level.WARNING
    assert ports.proxy_ports(1, 2, taken=frozenset({3})).level is Level.OK


def test_dns_listen() -> None:
    """An address that this host does not have is a warning, since it may come later."""
    assert ports.dns_listen([IPv4Address("127.66.0.53")]) == []
    (found,) = ports.dns_listen([IPv4Address("192.0.2.1"), IPv4Address("127.66.0.53")])
    assert found.level is Level.WARNING
    assert "192.0.2.1 of dns_listen is no address of this host" in found.words
    assert "ip -4 address" in found.remedy
