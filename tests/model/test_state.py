"""The state of a host."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import get_args

from appliance.model import state as st
from appliance.model.facts import Allocations
from appliance.model.names import Name


def test_a_new_host_has_nothing():
    """Nothing is open, answered or announced, and no table is known."""
    empty = st.HostState()
    assert not empty.listeners
    assert not empty.rulesets
    assert not empty.registrations
    assert (empty.host_ruleset, empty.zone) == (None, None)
    assert empty.dns_addresses == frozenset()


def test_a_shortage_is_no_difference():
    """It is told to the operator; no step could bring it about."""
    empty = st.HostState()
    assert empty == replace(empty, shortage="vip_range is too small")
    allocations = Allocations(vips={Name.parse("a.b"): IPv4Address("240.0.0.1")})
    assert empty != replace(empty, allocations=allocations)


def test_steps_are_compared_by_content():
    """Equal steps are equal, so that a step that failed before can be recognised."""
    one, two = (st.KeepAllocations(allocations=Allocations()) for _ in range(2))
    assert one == two
    assert type(one) in get_args(st.Step)
