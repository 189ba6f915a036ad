"""Ethernet addresses as numbers."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InputError
from appliance.model.mac import format_mac, link_local, parse_mac


@given(st.integers(0, 2**48 - 1))
def test_written_and_read(mac):
    """The same number comes back."""
    assert parse_mac(format_mac(mac)) == mac
    assert parse_mac(format_mac(mac).upper()) == mac


@pytest.mark.parametrize(
    "text", ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "02-42-ac-11-00-02", "\u06602:42:ac:11:00:02"]
)
def test_anything_else_is_refused(text):
    """With an example."""
    with pytest.raises(InputError, match="such as 02:42:ac:11:00:02"):
        parse_mac(text)


def test_link_local_address():
    """As Linux makes it (RFC 4291, appendix A)."""
    assert link_local(parse_mac("02:42:ac:11:00:02")) == IPv6Address("fe80::42:acff:fe11:2")
    assert link_local(parse_mac("34:56:78:9a:bc:de")) == IPv6Address("fe80::3656:78ff:fe9a:bcde")
