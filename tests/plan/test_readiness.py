"""When a container may be sent connections."""

from __future__ import annotations

import pytest

from appliance.model.facts import RunState
from appliance.model.names import Port
from appliance.plan.readiness import is_ready, missing, serves
from tests.plan.cases import container

TCP, UDP = Port.parse("80:8080"), Port.parse("80:8080/udp")


@pytest.mark.parametrize(
    ("fields", "tcp", "udp"),
    [
        ({"accepting": frozenset({8080})}, True, True),
        ({"accepting": frozenset({80})}, False, True),
        ({"accepting": frozenset({8080}), "healthy": True}, True, True),
        ({"accepting": frozenset({8080}), "healthy": False}, False, False),
        ({"accepting": frozenset({8080}), "state": RunState.PAUSED}, False, False),
        ({"accepting": frozenset({8080}), "state": RunState.RESTARTING}, False, False),
        ({"accepting": frozenset({8080}), "state": RunState.EXITED}, False, False),
    ],
)
def test_serves(fields, tcp, udp):
    """TCP needs a connection accepted since the start; both need a running container that is not unhealthy."""
    workload = container(2, "a.b", **fields)
    assert serves(workload, TCP) is tcp
    assert serves(workload, UDP) is udp


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "waiting for port 8080"),
        ({"accepting": frozenset({8080})}, None),
        ({"accepting": frozenset({8080}), "healthy": False}, "waiting for its health check"),
        ({"state": RunState.EXITED, "exit_code": 3}, "exited with exit code 3"),
        ({"state": RunState.CREATED}, "created"),
        ({"problem": "no namespace of its own"}, "no namespace of its own"),
    ],
)
def test_missing(fields, expected):
    """What a container lacks is said in words."""
    workload = container(2, "a.b", **{"accepting": frozenset(), **fields})
    assert missing(workload, [UDP, TCP]) == expected
    assert is_ready(workload, [UDP, TCP]) is (expected is None)
