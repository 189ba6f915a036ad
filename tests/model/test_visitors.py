"""Visitors: the host and guests."""

from __future__ import annotations

from ipaddress import IPv4Address

from appliance.model.names import Allowance
from appliance.model.visitors import ConnectTo, Visitors

GUEST = frozenset({IPv4Address("10.0.0.50")})
SOME = ConnectTo(allowances=(Allowance.parse("web.shop:80"),))
ALL = ConnectTo(everything=True)


def test_whether_there_are_any():
    """The host counts though it may reach nothing; what guests may reach does not make guests."""
    assert not Visitors()
    assert not Visitors(guests_to=ALL, dns_listen=GUEST)
    assert Visitors(host=ConnectTo())
    assert Visitors(guests=GUEST)


def test_declared_is_what_those_present_may_reach():
    """Interests follow from it: nothing is watched for guests that do not exist."""
    assert Visitors(guests_to=ALL).declared == ()
    assert Visitors(host=SOME, guests_to=ALL).declared == (SOME,)
    assert Visitors(host=SOME, guests=GUEST, guests_to=ALL).declared == (SOME, ALL)
