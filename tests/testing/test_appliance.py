"""The stand-in for an appliance: it plans as the real one does, and checks what it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from appliance.config.options import Config
from appliance.errors import RetryError
from appliance.spec.parse import parse_service
from appliance.testing.appliance import FakeAppliance

WEB = parse_service(
    {"name": "shop", "count": 2, "containers": [{"name": "web", "image": "nginx", "ports": [80]}]},
)


@pytest.fixture
def fake():
    """An appliance without containers."""
    return FakeAppliance(Config(node="h1"))


def settle(fake):
    """Look until nothing moves any more."""
    for _ in range(5):
        fake.snapshot()
    return fake.snapshot()


def test_deployed_service_comes_up_step_by_step(fake) -> None:
    """A look after the other, its containers are created, accept connections and become backends."""
    trio.run(fake.deploy, [WEB])
    assert all(not w.bound for w in fake.snapshot().workloads)
    s = settle(fake)
    assert [(str(w.name), w.replica) for w in s.workloads] == [("web.shop", 0), ("web.shop", 1)]
    (listener,) = fake.have.listeners.values()
    assert len(listener.backends) == 2
    (stats,) = trio.run(fake.stats)
    assert (stats.port, len(stats.backends)) == (listener.port, 2)
    assert trio.run(fake.counters) == {"deploys": 1}
    assert "table inet meshbox" in trio.run(fake.rules, s.workloads[0])


def test_removed_service_goes(fake) -> None:
    """A tombstone is put in its place, and its containers go; what is not there cannot be removed."""
    trio.run(fake.deploy, [WEB])
    settle(fake)
    assert trio.run(fake.remove, "shop")
    assert not trio.run(fake.remove, "shop")
    assert settle(fake).workloads == ()
    assert fake.registry_facts.tombstones.keys() == {"shop"}


def test_what_it_is_told_is_checked(fake) -> None:
    """A spec that is there already need not be stored."""
    trio.run(fake.deploy, [WEB])
    with pytest.raises(AssertionError, match="need not be stored"):
        trio.run(fake.deploy, [WEB])
    trio.run(fake.deploy, [replace(WEB, count=1)])
    assert fake.deploys == 2


def test_images(fake) -> None:
    """One that is missing cannot be pulled; one that is absent is, and tells how far it is."""
    told = []
    fake.absent_images = {"nginx"}
    trio.run(fake.pull, [WEB], lambda image, state: told.append((image, state)))
    assert told == [("nginx", "pulling"), ("nginx", "pulling 40 %"), ("nginx", "pulled")]
    fake.missing_images = {"nginx"}
    with pytest.raises(RetryError, match="image nginx cannot be pulled"):
        trio.run(fake.pull, [WEB], lambda *_: None)
    trio.run(fake.deploy, [WEB])
    settle(fake)
    assert all(p.failed and "no such image" in p.state for p in fake.under_way.values())
    assert len(fake.under_way) == 2


def test_silent_container_is_never_ready(fake) -> None:
    """It runs and accepts nothing."""
    fake.silent = {"web"}
    trio.run(fake.deploy, [WEB])
    s = settle(fake)
    assert [w.bound for w in s.workloads] == [frozenset()] * 2
    assert all(not listener.backends for listener in fake.have.listeners.values())
