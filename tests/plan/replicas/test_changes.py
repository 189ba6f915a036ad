from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.plan.replicas.changes import changes, removal
from appliance.spec.constraint import parse_constraint
from tests.plan.cases import declared, spec


def told(deployed, *wanted):
    """The lines of a plan, as tuples."""
    return [(c.service, c.container, str(c.kind), c.words) for c in changes({s.name: s for s in deployed}, wanted)]


BEFORE = spec("shop", declared("web", (80,)), declared("db", (5432,)), count=2)


def test_new_service():
    """A service that is not there is added with all of its containers."""
    assert told([], BEFORE) == [
        ("shop", "", "add", "2 replicas"),
        ("shop", "web", "add", "image"),
        ("shop", "db", "add", "image"),
    ]


def test_same():
    """The same declaration is no change, and services that it does not name are not in the plan."""
    assert told([BEFORE, spec("other")], BEFORE) == [("shop", "", "same", "2 replicas")]


def test_count_and_constraint():
    """What changes of the service as a whole is told by itself."""
    after = replace(BEFORE, count=1, constraint=parse_constraint("zone=a"))
    assert told([BEFORE], after) == [("shop", "", "change", "2 replicas → 1 replica; constraint none → zone=a")]


def test_open():
    """Whether labelled containers belong to it is told in words."""
    opened = replace(BEFORE, open=True)
    assert told([BEFORE], opened) == [("shop", "", "change", "opened to labelled containers")]
    assert told([opened], BEFORE) == [("shop", "", "change", "closed to labelled containers")]


def test_containers_come_and_go():
    """Containers that are new and containers that are gone."""
    after = spec("shop", declared("web", (80,)), declared("cache"), count=2)
    assert told([BEFORE], after)[1:] == [("shop", "cache", "add", "image"), ("shop", "db", "remove", "image")]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": "new"}, "image image → new (replaces its containers one by one)"),
        ({"ports": ()}, "ports 80/tcp → none (in place)"),
        ({"memory": 64}, "memory none → 64 (replaces its containers one by one)"),
        ({"command": ("a", "b")}, "command none → a,b (replaces its containers one by one)"),
        ({"env": (("KEY", "secret"),)}, "env none → KEY (replaces its containers one by one)"),
    ],
)
def test_container_changes(fields, words):
    """Each changed field is named, whether it costs the containers, and no value that may be secret."""
    web, db = BEFORE.containers
    after = replace(BEFORE, containers=(replace(web, **fields), db))
    assert told([BEFORE], after)[1:] == [("shop", "web", "change", words)]


def test_removal():
    """Removing a service removes all of its containers."""
    assert [(c.container, str(c.kind)) for c in removal(BEFORE)] == [
        ("", "remove"),
        ("web", "remove"),
        ("db", "remove"),
    ]
