"""Labels of containers, and the words for bad ones."""

from __future__ import annotations

import pytest
from hypothesis import given
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


@given(st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(), st.text()))
def test_no_label_raises(some):
    """Whatever is written on a container, parsing it gives labels, a problem or nothing."""
    found = labels.parse_labels(some)
    assert (found is None) == ("meshbox.service" not in some)
    assert found is None or str(found.name).isprintable()
