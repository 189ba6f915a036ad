"""What this machine wants to hear about from others."""

from __future__ import annotations

from appliance.model.registry import Interests
from appliance.plan.interests import interests
from tests.plan.cases import container, declared, machine, managed, snapshot, spec


def test_of_containers_and_what_they_may_reach():
    """A container's own service, and each that its labels name."""
    s = snapshot(container(2, "web.shop", to=("db.data:1", "log.log")))
    assert interests(s) == Interests(services=frozenset({"shop", "data", "log"}))


def test_of_managed_containers_the_spec_counts():
    """What the deployed spec allows wins over the labels."""
    service = spec("shop", declared("web", to=("db.data",)))
    s = snapshot(managed(2, service), specs=[service])
    assert interests(s).services == {"shop", "data"}


def test_of_what_is_to_run_here():
    """A service placed here is watched before its containers exist; one placed elsewhere is none of our business."""
    here = spec("here", declared("web", to=("db.data",)), constraint="here")
    there = spec("there", declared("web", to=("db.secret",)), constraint="m2")
    s = snapshot(specs=[here, there], machines=(machine("m2", "10.0.0.2"),))
    assert interests(s).services == {"here", "data"}
