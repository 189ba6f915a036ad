"""When a container may be sent connections and datagrams."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from math import inf

import pytest

from appliance.model.facts import BoundPort, RunState, UnreachedPort
from appliance.model.names import Port, Protocol
from appliance.plan.readiness import is_ready, may_open, missing, serves, settles_in, way
from tests.plan.cases import bound, container, stopped

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
        ({"bound": BOTH, "state": RunState.PAUSED}, True, True),
        ({"bound": BOTH, "state": RunState.PAUSED, "healthy": False}, True, True),
        ({"bound": frozenset(), "state": RunState.PAUSED}, False, False),
        ({"bound": BOTH, "state": RunState.RESTARTING}, False, False),
        ({"bound": BOTH, "state": RunState.EXITED}, False, False),
    ],
)
def test_serves(fields, tcp, udp):
    """Both need a program on that port, in a container that runs and is not unhealthy, or is paused."""
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
        ({}, "waiting for port 8080"),
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
    workload = container(2, "a.b", **{"bound": frozenset(), "bound_since": 1000.0, **fields})
    assert missing(workload, [UDP, TCP], 1000.0) == expected
    assert is_ready(workload, [UDP, TCP], 1000.0) is (expected is None)


DATA = Port.parse("30023")
LISTENS = container(2, "a.b", bound=BOTH, bound_since=1000.0)


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (LISTENS, True),
        (replace(LISTENS, bound=bound("8080/udp")), True),
        (replace(LISTENS, bound=bound(8080, 30023)), False),
        (replace(LISTENS, bound=frozenset()), False),
        (replace(LISTENS, unreached=frozenset({UnreachedPort(Protocol.TCP, 30023, "at 127.0.0.1")})), False),
        (replace(LISTENS, healthy=False), False),
        (replace(LISTENS, state=RunState.PAUSED), False),
        (stopped(LISTENS), False),
    ],
    ids=["other listens", "by UDP", "listens itself", "none listens", "loopback", "unhealthy", "paused", "stopped"],
)
def test_a_port_may_open_beside_one_that_listens(workload, expected):
    """A program that opens a port for one client listens on another; without that it is still starting."""
    assert may_open(workload, DATA, [TCP, DATA, UDP]) is expected


def test_a_udp_port_may_open_too():
    """As those for one call do."""
    assert may_open(replace(LISTENS, bound=bound(8080)), UDP, [TCP, UDP])
    assert not may_open(LISTENS, UDP, [TCP, UDP])


def test_nothing_waits_for_ever_for_a_port_that_opens_on_demand():
    """It is waited for as long as programs need from their first port to their last; not where none listens."""
    for now, words in ((1000.0, "waiting for port 30023"), (1009.9, "waiting for port 30023"), (1010.1, None)):
        assert missing(LISTENS, [TCP, DATA], now) == words
        assert settles_in(LISTENS, [TCP, DATA], now) == pytest.approx(1010.0 - now if words else inf)
    assert missing(LISTENS, [TCP, DATA], 900.0) is None, "the clock was set back"
    assert missing(replace(LISTENS, healthy=False), [TCP, DATA], 1010.1) is not None
    assert missing(replace(LISTENS, bound=frozenset(), bound_since=0.0), [TCP, DATA], 2000.0) is not None
    assert settles_in(LISTENS, [TCP], 1001.0) == inf


def test_nothing_waits_for_ever_for_a_udp_port():
    """Many programs use one only now and then. It is no backend for that, and one at loopback is a mistake to tell."""
    sends = container(2, "a.b", bound=frozenset(), started_at=1000.0)
    for now, words in ((1009.9, "waiting for port 8080/udp"), (1010.1, None)):
        assert missing(sends, [UDP], now) == words
        assert settles_in(sends, [UDP], now) == pytest.approx(1010.0 - now if words else inf)
    assert missing(sends, [TCP, UDP], 1010.1) == "waiting for port 8080"
    assert not serves(sends, UDP)
    local = replace(sends, unreached=frozenset({UnreachedPort(Protocol.UDP, 8080, "at 127.0.0.1")}))
    assert missing(local, [UDP], 1010.1) == "waiting for port 8080/udp: its program listens at 127.0.0.1 only"
