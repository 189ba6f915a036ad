"""When a container may be sent connections and datagrams."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from appliance.model.facts import BoundPort, RunState, UnreachedPort
from appliance.model.names import Port, Protocol
from appliance.plan.readiness import is_ready, missing, serves, way
from tests.plan.cases import bound, container

TCP, UDP = Port.parse("80:8080"), Port.parse("80:8080/udp")
BOTH = bound(8080, "8080/udp")


@pytest.mark.parametrize(
    ("fields", "tcp", "udp"),
    [
        ({"bound": bound(8080)}, True, False),
        ({"bound": bound("8080/udp")}, False, True),
        ({"bound": bound(80, "80/udp")}, False, False),
        ({"bound": BOTH}, True, True),
        ({"bound": BOTH, "healthy": True}, True, True),
        ({"bound": BOTH, "healthy": False}, False, False),
        ({"bound": BOTH, "state": RunState.PAUSED}, False, False),
        ({"bound": BOTH, "state": RunState.RESTARTING}, False, False),
        ({"bound": BOTH, "state": RunState.EXITED}, False, False),
    ],
)
def test_serves(fields, tcp, udp):
    """Both need a program on that port, in a running container that is not unhealthy."""
    workload = container(2, "a.b", **fields)
    assert serves(workload, TCP) is tcp
    assert serves(workload, UDP) is udp


def test_the_way_to_a_port():
    """Mostly the usual one; else the one that was found."""
    elsewhere = BoundPort(Protocol.TCP, 8080, IPv4Address("172.19.0.2"), by_link=True)
    assert way(container(2, "a.b", bound=BOTH), TCP) == BoundPort(Protocol.TCP, 8080)
    assert way(container(2, "a.b", bound=bound(80, "8080/udp") | {elsewhere}), TCP) == elsewhere
    assert way(container(2, "a.b", bound=bound(80, "8080/udp")), TCP) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "waiting for port 8080/udp"),
        ({"bound": bound("8080/udp")}, "waiting for port 8080"),
        ({"bound": BOTH}, None),
        ({"bound": BOTH, "healthy": False}, "waiting for its health check"),
        (
            {"unreached": {UnreachedPort(Protocol.UDP, 8080, "at 127.0.0.1")}},
            "waiting for port 8080/udp: its program listens at 127.0.0.1 only",
        ),
        (
            {"bound": bound("8080/udp"), "unreached": {UnreachedPort(Protocol.TCP, 8080, "by IPv6")}},
            "waiting for port 8080: its program listens by IPv6 only",
        ),
        ({"state": RunState.EXITED, "exit_code": 3}, "exited with exit code 3"),
        ({"state": RunState.CREATED}, "created"),
        ({"problem": "no namespace of its own"}, "no namespace of its own"),
    ],
)
def test_missing(fields, expected):
    """What a container lacks is said in words."""
    workload = container(2, "a.b", **{"bound": frozenset(), **fields})
    assert missing(workload, [UDP, TCP]) == expected
    assert is_ready(workload, [UDP, TCP]) is (expected is None)
