"""Processes of the host and guests: what they reach follows from what the configuration says, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from appliance.model.facts import Endpoint, Machine, Settings, Snapshot
from appliance.model.names import Allowance, Destination, Name
from appliance.model.registry import Interests
from appliance.model.visitors import ConnectTo, Visitors
from appliance.plan.compile import compile_host
from appliance.plan.interests import interests
from appliance.plan.visitors import LOOPBACK

OTHER, HOST, GUEST = map(IPv4Address, ("10.0.0.2", "10.0.0.1", "10.0.0.9"))
DNS = IPv4Address("127.66.0.53")
REDIS, WEB = Destination.parse("redis.flask:8080"), Destination.parse("web.shop:80")


def snapshot(host: ConnectTo | None, guests_to: ConnectTo | None = None) -> Snapshot:
    """A gateway beside another machine that serves two destinations."""
    visitors = Visitors(
        host=host,
        guests=frozenset({GUEST}) if guests_to else frozenset(),
        guests_to=guests_to or ConnectTo(),
        dns_listen=frozenset({DNS}),
    )
    return Snapshot(
        now=1.0,
        settings=Settings(node="gate", gateway=True, visitors=visitors),
        host_addresses=frozenset({HOST}),
        machines=(Machine(node="m2", address=OTHER),),
        endpoints=tuple(
            Endpoint(destination=d, node="m2", address=OTHER, port=20000 + n, weight=1)
            for n, d in enumerate((REDIS, WEB))
        ),
    )


def some(*words: str) -> ConnectTo:
    """Write allowances."""
    return ConnectTo(allowances=tuple(map(Allowance.parse, words)))


ALL = ConnectTo(everything=True)


def test_host_reaches_what_is_declared() -> None:
    """It sees its names, also ones that do not exist yet, has routes for what there is, and is let in by source."""
    state = compile_host(snapshot(some("redis.flask:8080", "later.flask")))
    assert set(state.listeners) == {REDIS}
    assert state.listeners[REDIS].callers == {HOST, LOOPBACK}
    assert [b.address for b in state.listeners[REDIS].backends] == [OTHER]
    assert state.host_ruleset.visitors is not None
    assert {r.vip for r in state.host_ruleset.visitors.host_routes} == {state.zone.names[REDIS.name]}
    assert state.host_ruleset.visitors.guest_routes == frozenset()
    assert state.zone.views[LOOPBACK] == {REDIS.name, Name.parse("later.flask")}
    assert state.zone.visitors[HOST] == "host_connect_to"
    assert state.dns_addresses == {DNS}


def test_everything() -> None:
    """`*` is everything that anybody serves, and every service is of interest."""
    s = snapshot(ALL)
    assert set(compile_host(s).listeners) == {REDIS, WEB}
    assert interests(s).everything
    assert interests(snapshot(some("redis.flask"))) == Interests(services=frozenset({"flask"}))


def test_guests_and_the_host_differ() -> None:
    """Each has its own names, routes and places among the callers; rules let guests in to proxy and DNS."""
    state = compile_host(snapshot(some("redis.flask"), some("web.shop:80")))
    rules = state.host_ruleset
    assert state.listeners[WEB].callers == {GUEST}
    assert state.listeners[REDIS].callers == {HOST, LOOPBACK}
    assert state.zone.views[GUEST] == {WEB.name}
    assert {r.port for r in rules.visitors.guest_routes} == {80}
    assert GUEST in rules.workloads
    assert rules.visitors.guests == {GUEST}


def test_nobody() -> None:
    """Without visitors there are no rules for them, no listener for what others serve, and no DNS on dns_listen."""
    state = compile_host(snapshot(None))
    assert state.host_ruleset.visitors is None
    assert state.listeners == {}
    assert state.dns_addresses == frozenset()
    assert state.zone.views == {}


@pytest.mark.parametrize("gone", [some(), some("web.shop")])
def test_withdrawn(gone) -> None:
    """What is no longer declared has no listener any more."""
    s = snapshot(some("redis.flask"))
    kept = compile_host(s).allocations
    after = compile_host(replace(snapshot(gone), allocations=kept))
    assert REDIS not in after.listeners
