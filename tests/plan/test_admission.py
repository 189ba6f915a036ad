"""A label makes no replica and no sibling of a service that somebody else deployed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.plan.admission import admitted, left_behind
from appliance.plan.compile import compile_host
from tests.plan.cases import container, declared, snapshot, spec

SHOP = spec("shop", declared("web", ports=(80,)), declared("db", ports=(5432,)))
MADE = container(2, "web.shop", (80,), replica=0, revision="0badcafe")


def state(*workloads, service=SHOP):
    """What a host should have, with the service deployed."""
    specs = {service.name: service} if service is not None else {}
    facts = snapshot(*workloads, specs=list(specs.values()))
    return compile_host(replace(facts, workloads=admitted(facts.workloads, specs)))


def backends(found, destination):
    """The containers to which connections go."""
    return sorted(b.label for d, one in found.listeners.items() if str(d) == destination for b in one.backends)


def reached(found, number):
    """Names that the container may resolve."""
    return {str(name) for view in [found.zone.views.get(container(number, "a.b").addresses[0], ())] for name in view}


def test_a_label_makes_no_replica():
    """Its container gets no connections, no rules and no names; with `open` it is one more replica."""
    labelled = container(3, "web.shop", (80,))
    found = state(MADE, labelled, container(4, "user.user", to=["web.shop:80"]))
    assert backends(found, "web.shop:80/tcp") == ["c2"]
    assert labelled.netns.id not in found.rulesets
    assert reached(found, 3) == set()
    opened = state(MADE, labelled, container(4, "user.user", to=["web.shop:80"]), service=replace(SHOP, open=True))
    assert backends(opened, "web.shop:80/tcp") == ["c2", "c3"]


def test_a_label_makes_no_sibling():
    """The service's name alone gave the right to reach all of it."""
    labelled = container(3, "anything.shop")
    assert reached(state(MADE, labelled), 3) == set()
    assert "db.shop" in reached(state(MADE, labelled, service=replace(SHOP, open=True)), 3)


def test_who_is_not_meant():
    """What meshbox made, other services, and services that nobody deployed are the same objects as before."""
    others = (MADE, container(3, "a.other"), container(5, "web.shop", problem="no bridge"))
    assert all(a is b for a, b in zip(admitted(others, {"shop": SHOP}), others, strict=True))
    labelled = (container(4, "web.shop"),)
    assert admitted(labelled, {}) == labelled


def test_the_words():
    """They name the service and what to write."""
    (found,) = admitted([container(3, "web.shop")], {"shop": SHOP})
    assert found.problem == (
        'service "shop" is deployed and takes no container by its labels: deploy it with open=True,'
        " or give the label meshbox.service another value"
    )


@pytest.mark.parametrize(("number", "words"), [(1, "c3 would leave"), (7, "c3, c4, c5, c6, c7 and 2 more would leave")])
def test_a_deploy_tells_whom_it_leaves_behind(number, words):
    """A deploy that closes a service names the labelled containers that are in it."""
    labelled = [container(3 + n, "web.shop") for n in range(number)]
    (warning,) = left_behind([MADE, *labelled, container(40, "a.b")], [SHOP, spec("new")])
    assert f'service "shop" takes no container by its labels: {words} the mesh; write open=True' in warning
    assert left_behind(labelled, [replace(SHOP, open=True)]) == ()
    assert left_behind(admitted(labelled, {"shop": SHOP}), [SHOP]) == (), "they are out already"


def test_names_are_shown_in_what_prints():
    """A Docker name of another engine's may hold anything."""
    (warning,) = left_behind([replace(container(3, "web.shop"), docker_name="a\x1b[2J")], [SHOP])
    assert warning.isprintable()
