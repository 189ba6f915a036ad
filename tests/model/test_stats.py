"""Counters."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Address

from appliance.model.names import Destination
from appliance.model.network import Backend
from appliance.model.stats import BackendStats, Connection, ListenerStats


def test_counters_of_one_protocol_are_zero_for_the_other():
    """What only TCP or only UDP counts need not be told by the other."""
    backend = Backend(address=IPv4Address("172.18.0.2"), port=80, local=True)
    counted = BackendStats(backend=backend, opened=3, failed=0, active=1, bytes_in=10, bytes_out=20, ejected=0.0)
    found = ListenerStats(
        destination=Destination.parse("a.b:80"),
        port=20000,
        accepted=3,
        refused=0,
        failed=0,
        active=1,
        backends=(counted,),
    )
    assert (found.evicted, found.dropped, found.starved) == (0, 0, 0)
    assert sum(b.active for b in found.backends) == found.active


def test_a_connection_is_told_in_full():
    """Every field must be given: a default would hide what a data plane forgot to count."""
    assert [f.name for f in fields(Connection)] == [
        *("destination", "client", "backend", "label", "bytes_in", "bytes_out", "age", "draining")
    ]
    assert all(f.default is f.default_factory for f in fields(Connection))
