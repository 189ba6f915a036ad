from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from appliance.model.names import Allowance
from bench.controlhost import BOUND, PORT, address, make_workload, workloads
from bench.lab import CLIENT_IP, SERVER_IP


def test_the_lab_is_among_the_workloads() -> None:
    """Real traffic can run from the second to the first; no two workloads share an address."""
    assert (str(address(0)), str(address(1))) == (SERVER_IP, CLIENT_IP)
    assert len({address(number) for number in range(1000)}) == 1000


def test_a_workload_accepts_connections() -> None:
    """It is ready on the one port that it offers; rules of its own has the lab's server only."""
    allowed = (Allowance.parse("c.s0:8080"),)
    made = make_workload(7, "c.s7", IPv4Address("10.92.0.7"), None, allowed)
    assert made.bound == BOUND
    assert [p.container for p in made.ports] == [PORT]
    assert made.connect_to == allowed
    assert not made.own_rules
    assert make_workload(0, "c.s0", IPv4Address(SERVER_IP), None, ()).own_rules


def test_a_namespace_that_is_missing_is_named() -> None:
    """The work makes them before it starts this program."""
    with pytest.raises(SystemExit, match="/run/netns/mbb-w0 is no network namespace"):
        workloads(1, 1)
