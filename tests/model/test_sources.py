"""The part of the virtual IPs that callers have."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from foreign import check_shown
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InputError
from appliance.model.names import Name
from appliance.model.sources import (
    SHARES,
    caller_step,
    callers_part,
    first_address,
    guest_key,
    machine_key,
    parse_caller_key,
    parse_docker_name,
    replica_key,
)

DEFAULT = IPv4Network("240.0.0.0/4")
ADDRESS = IPv4Address("10.0.0.50")


@pytest.mark.parametrize(
    ("vip_range", "part", "step"),
    [
        ("240.0.0.0/4", "240.0.0.0/8", 1 << 21),
        ("10.0.0.0/15", "10.0.0.0/19", 1 << 10),
        ("10.0.0.0/16", "10.0.0.0/20", 0),
        ("10.9.0.0/24", "10.9.0.0/28", 0),
        ("10.9.0.0/29", "10.9.0.0/32", 0),
        ("10.9.0.0/32", "10.9.0.0/32", 0),
    ],
)
def test_the_first_sixteenth(vip_range: str, part: str, step: int) -> None:
    """Each caller has several addresses in it, if there is room for a thousand callers."""
    assert callers_part(IPv4Network(vip_range)) == IPv4Network(part)
    assert caller_step(IPv4Network(vip_range)) == step


def test_further_addresses_lead_back_to_the_first() -> None:
    """And they lie in the callers' part, all of them."""
    first = IPv4Address("240.31.255.255")
    for share in range(SHARES):
        further = first + share * caller_step(DEFAULT)
        assert further in callers_part(DEFAULT)
        assert first_address(further, DEFAULT) == first
    assert first_address(IPv4Address("10.9.0.5"), IPv4Network("10.9.0.0/24")) == IPv4Address("10.9.0.5")


def test_keys_of_different_callers_differ() -> None:
    """A service may be called `guest` or `machine`; each key is one that the state file takes."""
    keys = {replica_key(Name.parse("guest.machine"), 0), guest_key(ADDRESS), machine_key(ADDRESS)}
    assert len(keys) == 3
    assert {parse_caller_key(key) for key in keys} == keys
    longest = Name(service="s" * 63, container="c" * 63)
    assert parse_caller_key(replica_key(longest, 2**31))


@given(st.one_of(st.none(), st.integers(), st.text(), st.text("a.b/", min_size=190, max_size=300)))
def test_what_others_wrote(value: object) -> None:
    """It is taken as it is, or refused with words that fit a terminal."""
    for parse in (parse_caller_key, parse_docker_name):
        try:
            assert parse(value) == value
        except InputError as error:
            check_shown(error, 300)
