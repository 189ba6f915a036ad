"""Labels of containers, and the words for bad ones."""

from __future__ import annotations

import pytest
from foreign import EVIL, HUGE, LARGE, TEXTS, check_shown
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.drivers.docker import labels
from appliance.model.names import Allowance, Name, Port

GOOD = {
    "meshbox.service": "flask",
    "meshbox.container": "redis",
    "meshbox.ports": "8080/udp, 8080:6379",
    "meshbox.connect_to": "apple.orange:8080,pear.orange",
    "com.docker.compose.project": "shop",
}


def test_labels_are_parsed():
    """Name, ports and allowances come from the labels; labels of others are nobody's business."""
    found = labels.parse_labels(GOOD)
    assert found.name == Name(service="flask", container="redis")
    assert found.ports == (Port.parse("8080/udp"), Port.parse("8080:6379"))
    assert found.connect_to == (Allowance.parse("apple.orange:8080"), Allowance.parse("pear.orange"))
    assert (found.replica, found.revision, found.problem) == (None, None, None)


def test_without_service_it_is_left_alone():
    """No `meshbox.service`, no workload, whatever else it is labelled with."""
    assert labels.parse_labels({"meshbox.container": "redis"}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meshbox.service": "Flask"}, 'label meshbox.service: service name "Flask" is not a host label'),
        ({"meshbox.service": "10"}, 'label meshbox.service: service name "10" is a number'),
        ({"meshbox.container": "a_b"}, 'label meshbox.container: container name "a_b" is not a host label'),
        ({"meshbox.ports": "70000"}, 'label meshbox.ports: "70000" in port "70000" is not a port number'),
        ({"meshbox.ports": "8080,8080:81"}, "port 8080/tcp is declared twice"),
        ({"meshbox.connect_to": "orange:80"}, "label meshbox.connect_to: "),
        ({"meshbox.replica": "first"}, "label meshbox.replica: "),
        ({"meshbox.port": "80"}, 'label "meshbox.port" is not known (did you mean "meshbox.ports"?)'),
    ],
)
def test_bad_labels_become_a_problem(change, words):
    """A bad label says which and how to mend it, on one line."""
    problem = labels.parse_labels(GOOD | change).problem
    assert words in problem
    assert "\n" not in problem


def test_missing_container_label():
    """`meshbox.service` alone says what to add."""
    assert "meshbox.container is missing" in labels.parse_labels({"meshbox.service": "flask"}).problem


OURS = ("service", "container", "ports", "connect_to", "replica", "revision")


@given(st.dictionaries(st.sampled_from([f"meshbox.{name}" for name in OURS]) | TEXTS, TEXTS))
@example(GOOD | {"meshbox.ports": HUGE})
@example(GOOD | {"meshbox.ports": f"80:{HUGE}"})
@example(GOOD | {"meshbox.connect_to": f"a.b:{HUGE}"})
@example(GOOD | {"meshbox.replica": "7" * 5000})
@example(GOOD | {"meshbox.replica": "²"})
@example(GOOD | {"meshbox.service": EVIL})
@example(GOOD | {"meshbox.container": EVIL})
@example(GOOD | {"meshbox.ports": EVIL})
@example(GOOD | {f"meshbox.{EVIL}": EVIL})
@example(GOOD | {"meshbox.revision": f"x:{LARGE} y"})
@example(GOOD | {"meshbox.container": "x" * 2**20})
def test_no_label_raises(some):
    """Whatever is written on a container, parsing it gives labels, a problem or nothing, and all can be shown."""
    found = labels.parse_labels(some)
    assert (found is None) == ("meshbox.service" not in some)
    if found is not None:
        check_shown(found.name)
        check_shown(found.problem)
        check_shown(found.revision)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"meshbox.ports": ",".join(map(str, range(1, 258)))},
            "label meshbox.ports: it has 257 ports; 256 is the most",
        ),
        (
            {"meshbox.connect_to": ",".join(f"a.b:{port}" for port in range(1, 258))},
            "label meshbox.connect_to: it has 257 entries; 256 is the most",
        ),
        ({"meshbox.connect_to": "," * 65537}, "label meshbox.connect_to: it has 65537 characters; 65536 is the most"),
        ({"meshbox.replica": "1000"}, '"1000" is not a replica number'),
        ({"meshbox.replica": "٣"}, "is not a replica number"),
        ({"meshbox.revision": "a b"}, '"a b" is not a revision'),
        ({"meshbox.revision": "a:1"}, '"a:1" is not a revision'),
    ],
)
def test_bounds(change, words):
    """What one container may ask of its host has limits, and the problem names them."""
    assert words in labels.parse_labels(GOOD | change).problem


def test_the_most_that_is_allowed():
    """The limits themselves are no problem."""
    most = GOOD | {
        "meshbox.ports": ",".join(map(str, range(1, 257))),
        "meshbox.replica": "999",
        "meshbox.revision": "0a",
    }
    found = labels.parse_labels(most)
    assert (found.problem, len(found.ports), found.replica, found.revision) == (None, 256, 999, "0a")
