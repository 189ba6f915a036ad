"""The sockets of a door for DNS. What is led to them: tests/system/test_doors_dns.py."""

from __future__ import annotations

import socket
from itertools import product

import pytest
from dnsworld import free_port

from appliance.dataplane.dns import door
from appliance.dataplane.sockets import IP_TRANSPARENT


def test_they_serve_both_families_and_share_with_nobody() -> None:
    """Whatever options another program sets."""
    port = free_port()
    tcp, udp = door.listen(port)
    with tcp, udp:
        socket.create_connection(("127.0.0.1", port)).close()
        socket.create_connection(("::1", port)).close()
        for kind, option in product(
            (socket.SOCK_STREAM, socket.SOCK_DGRAM), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)
        ):
            with socket.socket(type=kind) as other:
                other.setsockopt(socket.SOL_SOCKET, option, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match="in use"):
            door.listen(port)


def test_rules_tell_what_is_transparent() -> None:
    """By both families."""
    for family, level, option in (
        (socket.AF_INET, socket.IPPROTO_IP, IP_TRANSPARENT),
        (socket.AF_INET6, socket.IPPROTO_IPV6, door.IPV6_TRANSPARENT),
    ):
        with socket.socket(family) as sock:
            assert not sock.getsockopt(level, option)
            door.make_transparent(sock)
            assert sock.getsockopt(level, option)
