"""All facts at one moment."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Address
from types import SimpleNamespace

import structlog

from appliance.control.snapshot import FactSources
from appliance.model.facts import Allocations, RegistryPorts, Settings, Snapshot
from appliance.model.names import Name, Protocol
from appliance.model.registry import RegistryFacts
from appliance.model.rollout import ReplicaKey
from tests.plan.cases import BRIDGE, BRIDGES, MEMBERS, container, endpoint, machine, spec

ADDED = {"announced", "kept"}
"""What the loop itself knows."""


def test_every_source_is_in_it() -> None:
    """Whatever a part knows, as it is when the snapshot is taken."""
    allocations = Allocations(vips={Name.parse("web.shop"): IPv4Address("240.0.0.9")})
    registry = SimpleNamespace(facts=RegistryFacts())
    containers = SimpleNamespace(workloads=(), networks=(), members=())
    deployer = SimpleNamespace(going=frozenset(), busy=frozenset())
    host, bridges = SimpleNamespace(now=frozenset()), SimpleNamespace(now=())
    sources = FactSources(
        Settings(node="n1"),
        registry=registry,
        containers=containers,
        deployer=deployer,
        host_addresses=host,
        bridges=bridges,
    )
    empty = sources.snapshot()
    registry.facts = RegistryFacts(
        specs={"shop": spec("shop")},
        tombstones={"old": 5.0},
        allocations=allocations,
        own_ports=frozenset({20001}),
        machines=(machine("n1", "10.0.0.1"),),
        endpoints=(endpoint("web.shop:80", "n2"),),
        ports=RegistryPorts(ports=frozenset({(Protocol.TCP, 8300)})),
    )
    containers.workloads, containers.networks = (container(2, "web.other"),), (BRIDGE,)
    containers.members, bridges.now = (MEMBERS[0],), (BRIDGES[0],)
    deployer.going = frozenset({"a" * 64})
    deployer.busy = frozenset({ReplicaKey(service="shop", replica=0, container="web")})
    host.now = frozenset({IPv4Address("10.0.0.1")})
    sources.settings = Settings(node="n1", doors=False)
    full = sources.snapshot()
    same = {f.name for f in fields(Snapshot) if getattr(full, f.name) == getattr(empty, f.name)}
    assert same == ADDED
    assert full.now >= empty.now > 0
    assert (full.specs, full.workloads, full.unusable_ports) == ({"shop": spec("shop")}, containers.workloads, {20001})
    assert (full.going, full.busy) == (deployer.going, deployer.busy)


def test_who_is_shut_out_is_told_once() -> None:
    """A labelled container of a deployed service has that as its problem, and the log says it once."""
    registry = SimpleNamespace(facts=RegistryFacts(specs={"shop": spec("shop")}))
    labelled = container(2, "web.shop")
    containers = SimpleNamespace(workloads=(labelled, container(3, "a.b")), networks=(), members=())
    deployer = SimpleNamespace(going=frozenset(), busy=frozenset())
    sources = FactSources(
        Settings(node="n1"),
        registry=registry,
        containers=containers,
        deployer=deployer,
        host_addresses=SimpleNamespace(now=frozenset()),
        bridges=SimpleNamespace(now=()),
    )
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            shut, other = sources.snapshot().workloads
    assert "takes no container by its labels" in shut.problem
    assert other.problem is None
    assert [(line["event"], line["container"]) for line in lines] == [
        ("a labelled container is not in the mesh", "c2"),
    ]
    registry.facts = RegistryFacts()
    assert sources.snapshot().workloads == containers.workloads
    registry.facts = RegistryFacts(specs={"shop": spec("shop")})
    with structlog.testing.capture_logs() as lines:
        sources.snapshot()
    assert len(lines) == 1, "it has been in the mesh meanwhile"
