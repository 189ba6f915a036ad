"""What each container may reach."""

from __future__ import annotations

import pytest

from appliance.model.names import Allowance, Name
from appliance.plan.policy import catalogue, declaration, may_reach, reach
from tests.plan.cases import container, declared, dest, managed, spec

KNOWN = catalogue(
    {"flask": spec("flask", declared("flask", ports=(8080, "8080/udp")), declared("redis", ports=(8080,)))},
    [declaration(container(2, "apple.orange", ports=(80, "80/udp", 443)), {})],
    [dest("pear.orange:80")],
)


@pytest.mark.parametrize(
    ("service", "allowances", "expected"),
    [
        ("x", [], []),
        ("x", ["apple.orange:80"], ["apple.orange:80", "apple.orange:80/udp"]),
        ("x", ["apple.orange:80/udp"], ["apple.orange:80/udp"]),
        ("x", ["apple.orange"], ["apple.orange:80", "apple.orange:80/udp", "apple.orange:443"]),
        ("x", ["apple.orange:81"], []),
        ("x", ["pear.orange"], ["pear.orange:80"]),
        ("x", ["kiwi.orange:80"], []),
        ("flask", [], ["flask.flask:8080", "flask.flask:8080/udp", "redis.flask:8080"]),
        (
            "flask",
            ["pear.orange:80"],
            ["flask.flask:8080", "flask.flask:8080/udp", "redis.flask:8080", "pear.orange:80"],
        ),
    ],
)
def test_reach(service, allowances, expected):
    """A container reaches its own service and what connect_to names, on the ports that are declared there."""
    found = reach(KNOWN, service, [Allowance.parse(a) for a in allowances])
    assert found.destinations == {dest(d) for d in expected}


def test_names_of_what_does_not_exist_yet():
    """A name in connect_to is known to the asker before anything of that name exists."""
    assert reach(KNOWN, "x", [Allowance.parse("kiwi.orange:80")]).names == {Name.parse("kiwi.orange")}


@pytest.mark.parametrize(
    ("service", "allowance", "destination", "expected"),
    [
        ("flask", "a.b", "redis.flask:9/udp", True),
        ("x", "apple.orange:80", "apple.orange:80/udp", True),
        ("x", "apple.orange:80/tcp", "apple.orange:80/udp", False),
        ("x", "apple.orange", "apple.pear:80", False),
    ],
)
def test_may_reach(service, allowance, destination, expected):
    """The question can be asked of a destination that nobody declared."""
    assert may_reach(service, [Allowance.parse(allowance)], dest(destination)) is expected


def test_deployed_spec_wins_over_labels_of_managed_containers_only():
    """A deploy that changes ports or connect_to takes effect without a new container; others keep their labels."""
    service = spec("web", declared("web", ports=(81,), to=("apple.orange",)))
    specs = {"web": service}
    old = managed(2, spec("web"))
    assert declaration(old, specs).ports == service.containers[0].ports
    assert declaration(old, specs).connect_to == service.containers[0].connect_to
    assert declaration(old, {}).ports == old.ports
    foreign = container(3, "web.web", ports=(80,))
    assert declaration(foreign, specs).ports == foreign.ports
