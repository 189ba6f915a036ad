"""Facts in, wanted state out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model.facts import RunState
from appliance.model.network import Backend
from appliance.plan.compile import Compiler, compile_host
from appliance.plan.turns import at_once
from tests.plan.cases import (
    SETTINGS,
    address,
    bound,
    container,
    declared,
    dest,
    endpoint,
    machine,
    managed,
    snapshot,
    snapshots,
    spec,
    stopped,
)

APPLE = dest("apple.orange:80")
SERVER = container(2, "apple.orange", ports=("80:8080",))
CLIENT = container(3, "flask.flask", to=("apple.orange:80",))


def backends(s, destination=APPLE) -> list[str]:
    """The labels of a destination's backends, without those that go."""
    return [b.label for b in compile_host(s).listeners[destination].backends if not b.retiring]


def test_one_server_and_one_client():
    """The whole state of a small host hangs together."""
    want = compile_host(snapshot(SERVER, CLIENT))
    listener = want.listeners[APPLE]
    assert listener.port == want.allocations.ports[APPLE]
    assert listener.callers == {address(2), address(3)}
    inside = SERVER.netns.id
    assert listener.backends == (Backend(address=address(2), port=8080, local=True, label="c2", netns=inside),)
    assert listener.vip == want.allocations.vips[APPLE.name]
    rules = want.rulesets[inside]
    assert (rules.door, rules.address, rules.dialler) == (True, address(2), IPv4Network("240.0.0.0/8"))
    without = snapshot(SERVER, CLIENT)
    without = replace(without, settings=replace(SETTINGS, doors=False))
    assert {rules.door for rules in compile_host(without).rulesets.values()} == {False}
    assert {n.inode for n in want.rulesets} == {2, 3}
    assert want.zone.names[APPLE.name] == want.allocations.vips[APPLE.name]
    assert want.host_ruleset.workloads == {address(2), address(3)}
    assert want.registrations[APPLE].weight == 1
    assert want.registrations[APPLE].proxy_port == listener.port


def test_nothing_is_announced_before_it_is_ready():
    """A container that does not accept yet has a listener and a name, but is no backend and not registered."""
    for server in (
        replace(SERVER, bound=frozenset()),
        replace(SERVER, healthy=False),
        stopped(SERVER),
    ):
        want = compile_host(snapshot(server, CLIENT))
        assert want.listeners[APPLE].backends == ()
        assert want.registrations == {}
        assert APPLE.name in want.zone.names


PAUSED = replace(SERVER, state=RunState.PAUSED, healthy=False)
FTP = container(2, "apple.orange", ports=("21:21", "80:8080"), bound=bound(21), bound_since=1000.0)


@pytest.mark.parametrize("server", [PAUSED, FTP], ids=["paused", "on demand"])
def test_a_spare_serves_where_nothing_else_does(server):
    """It is announced with no weight, so that other machines too come only where they find nothing else."""
    want = compile_host(snapshot(server, CLIENT))
    (backend,) = want.listeners[APPLE].backends
    assert (backend.paused, backend.on_demand) == (server is PAUSED, server is FTP)
    assert want.registrations[APPLE].weight == 0
    assert not any(rules.closed for rules in want.rulesets.values())
    there = {"endpoints": (endpoint("apple.orange:80", "m2", weight=0),)}
    (backend,) = compile_host(snapshot(CLIENT, **there)).listeners[APPLE].backends
    assert (backend.on_demand, backend.weight) == (True, 1)
    nearest = replace(snapshot(server, CLIENT, endpoints=(endpoint("apple.orange:80", "m2"),)))
    nearest = replace(nearest, settings=replace(SETTINGS, prefer_local=True))
    assert backends(nearest) == ["m2", "c2"], "what is ready elsewhere is better than a spare here"


def test_what_opens_on_demand_counts_for_deploys_once_nothing_waits_for_it():
    """Other machines wait for revisions; the plan itself says when that time has come."""
    ftp = spec("orange", declared("apple", ports=(21, 80)))
    server = managed(2, ftp, bound=bound(21), bound_since=1000.0)
    for now, revisions in ((1004.0, ()), (1010.5, ((server.revision, 1),))):
        plan = at_once(Compiler().compile(snapshot(server, CLIENT, specs=[ftp], now=now)))
        assert plan.want.registrations[APPLE].weight == 0
        assert plan.want.registrations[APPLE].revisions == revisions
        assert plan.due == (pytest.approx(1010.0 - now) if now < 1010.0 else inf)


def closed(want) -> dict[int, set[int]]:
    """What each namespace refuses through its door, by the ports of the mesh."""
    return {n.inode: {route.port for route in rules.closed} for n, rules in want.rulesets.items()}


def test_what_nothing_serves_is_closed():
    """In the namespaces that reach it and on the host, until it has a backend; to peers until one is here."""
    other = container(5, "pear.orange", ports=("81:81",))
    stranger = container(4, "a.a")
    unready = replace(SERVER, bound=frozenset())
    m2 = {"machines": (machine("here", "10.0.0.1"), machine("m2", "10.0.0.9"))}
    there = {"endpoints": (endpoint("apple.orange:80", "m2"),)}
    for facts, inside, host, to_peers in (
        (snapshot(unready, other, CLIENT, stranger), {2: {80}, 3: {80}, 4: set(), 5: {80}}, {80}, set()),
        (snapshot(SERVER, other, CLIENT), {2: set(), 3: set(), 5: set()}, set(), set()),
        (snapshot(unready, CLIENT, **m2), {2: {80}, 3: {80}}, {80}, {80}),
        (snapshot(unready, CLIENT, **m2, **there), {2: set(), 3: set()}, set(), {80}),
        (snapshot(stopped(SERVER), CLIENT), {3: {80}}, {80}, set()),
    ):
        want = compile_host(facts)
        ports = {port: d.port for d, port in want.allocations.ports.items()}
        assert closed(want) == inside
        assert {ports[port] for _, port in want.host_ruleset.closed} == host
        assert {ports[port] for _, port in want.host_ruleset.closed_to_peers} == to_peers
    without = compile_host(replace(snapshot(unready, CLIENT), settings=replace(SETTINGS, doors=False)))
    assert closed(without) == {2: set(), 3: set()}
    assert without.host_ruleset.closed


def test_what_retires_is_closed_to_all_but_peers():
    """They may not have heard of it yet."""
    server = managed(2, spec("orange", declared("apple", ports=(80,))))
    m2 = {"machines": (machine("here", "10.0.0.1"), machine("m2", "10.0.0.9"))}
    want = compile_host(snapshot(server, CLIENT, tombstones={"orange": 5.0}, **m2))
    assert closed(want)[3] == {80}
    assert want.host_ruleset.closed
    assert not want.host_ruleset.closed_to_peers


def test_readiness_touches_only_the_namespaces_that_reach_it():
    """The rules of all others are the same objects, also after a pass that was cut short."""
    pear = container(5, "pear.pear", ports=("81:81",))
    facts = snapshot(SERVER, CLIENT, pear)
    compiler = Compiler()
    before = at_once(compiler.compile(facts)).want
    work = compiler.compile(snapshot(replace(SERVER, bound=frozenset()), CLIENT, pear))
    for _ in range(6):
        next(work)
    work.close()
    after = at_once(compiler.compile(snapshot(replace(SERVER, bound=frozenset()), CLIENT, pear))).want
    assert closed(after) == {2: {80}, 3: {80}, 5: set()}
    assert after.rulesets[pear.netns.id] is before.rulesets[pear.netns.id]
    assert after.rulesets[CLIENT.netns.id].routes is before.rulesets[CLIENT.netns.id].routes
    again = at_once(compiler.compile(facts)).want
    assert again == before


def test_old_revision_serves_until_the_new_one_is_ready():
    """Connections go to the old container, then to the new one, and at no moment to none."""
    old = spec("orange", declared("apple", ports=(80,), image="old"))
    new = spec("orange", declared("apple", ports=(80,), image="new"))
    a, b = managed(2, old), managed(4, new)
    unready = replace(b, bound=frozenset())
    assert backends(snapshot(a, specs=[new])) == ["c2"]
    assert backends(snapshot(a, unready, specs=[new])) == ["c2"]
    assert backends(snapshot(a, b, specs=[new])) == ["c4"]


def test_removed_service_takes_no_new_connections():
    """Containers of a removed service drain: only peers get there, not registered; their own rules stay meanwhile."""
    server = managed(2, spec("orange", declared("apple", ports=(80,))))
    want = compile_host(snapshot(server, CLIENT, tombstones={"orange": 5.0}))
    assert [b.retiring for b in want.listeners[APPLE].backends] == [True]
    assert want.registrations == {}
    assert len(want.rulesets) == 2


def test_other_machines():
    """Other machines' proxies are backends with their weight, unless local ones are preferred and there are some."""
    facts = {
        "machines": (machine("here", "10.0.0.1"), machine("m2", "10.0.0.9")),
        "endpoints": (endpoint("apple.orange:80", "m2", weight=2), endpoint("apple.orange:80", "here")),
    }
    both = snapshot(SERVER, CLIENT, **facts)
    assert backends(both) == ["m2", "c2"]
    assert compile_host(both).registrations[APPLE].weight == 1
    nearest = replace(both, settings=replace(SETTINGS, prefer_local=True))
    assert backends(nearest) == ["c2"]
    assert backends(replace(nearest, workloads=(CLIENT,))) == ["m2"]
    assert compile_host(replace(nearest, workloads=(CLIENT,))).registrations == {}


def test_two_replicas():
    """Each ready replica is a backend; the announcement has their number."""
    want = compile_host(snapshot(SERVER, container(4, "apple.orange", ports=("80:8080",)), CLIENT))
    assert [b.label for b in want.listeners[APPLE].backends] == ["c2", "c4"]
    assert want.registrations[APPLE].weight == 2


@given(snapshots(), st.randoms())
def test_order_of_facts_does_not_matter(s, random):
    """Whatever order Docker, the store and the registry list things in, the result is the same."""

    def shuffled(items):
        return random.sample(list(items), len(items))

    other = replace(
        s,
        workloads=tuple(shuffled(s.workloads)),
        networks=tuple(shuffled(s.networks)),
        machines=tuple(shuffled(s.machines)),
        endpoints=tuple(shuffled(s.endpoints)),
        specs=dict(shuffled(s.specs.items())),
    )
    assert compile_host(other) == compile_host(s)


@given(st.lists(snapshots(), min_size=2, max_size=4))
def test_memory_changes_nothing(sequence):
    """A compiler that has seen other snapshots comes to the same as a new one."""
    compiler = Compiler()
    allocations = sequence[0].allocations
    for facts in sequence:
        # The same time for all: by itself it is no reason to plan anew, and only freed addresses remember it.
        s = replace(facts, allocations=allocations, now=sequence[0].now)
        plan = at_once(compiler.compile(s))
        want = plan.want
        assert plan == at_once(Compiler().compile(s))
        assert at_once(compiler.compile(replace(s, workloads=tuple(map(replace, s.workloads))))) == plan
        unready = replace(s, workloads=tuple(replace(w, bound=frozenset(), healthy=False) for w in s.workloads))
        assert at_once(compiler.compile(unready)) == at_once(Compiler().compile(unready))
        assert at_once(compiler.compile(s)) == plan
        allocations = want.allocations


def rules_agree(want, ruleset) -> bool:
    """Whether a namespace and the host refuse just what no listener could send anywhere."""
    served = {x.port for x in want.listeners.values() if any(not b.retiring for b in x.backends)}
    inside = {route.proxy_port for route in ruleset.closed}
    routes = {route.proxy_port for route in ruleset.routes}
    host = {port for _, port in want.host_ruleset.closed}
    return (
        inside == (routes - served if ruleset.door else set()) and host.isdisjoint(served) and routes - served <= host
    )


@given(snapshots())
def test_invariants(s):
    """Nobody shares a virtual IP or port; every route has its listener, which lets that workload in; names resolve."""
    want = compile_host(s)
    ports = {listener.port: listener for listener in want.listeners.values()}
    assert len(ports) == len(want.listeners)
    assert not ports.keys() & s.unusable_ports
    assert len(set(want.allocations.vips.values())) == len(want.allocations.vips)
    addresses = {w.netns.id: set() for w in s.workloads if w.netns}
    for w in s.workloads:
        if w.netns and w.problem is None:
            addresses[w.netns.id] |= set(w.addresses)
    for netns, ruleset in want.rulesets.items():
        for route in ruleset.routes:
            assert ports[route.proxy_port].callers >= addresses[netns]
        assert rules_agree(want, ruleset)
    for view in want.zone.views.values():
        assert view <= want.zone.names.keys()
    assert want.registrations.keys() <= want.listeners.keys()
    for d, registration in want.registrations.items():
        staying = [b for b in want.listeners[d].backends if b.local and not b.retiring]
        assert staying
        assert registration.weight == sum(not b.spare for b in staying)
    assert want.dns_addresses == want.host_ruleset.dns_addresses
