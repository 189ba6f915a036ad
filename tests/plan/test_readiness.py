"""When a container may be sent connections."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from appliance.model.facts import RunState
from appliance.model.names import Port
from appliance.plan.readiness import is_ready, may_open, missing, serves, settles_in
from tests.plan.cases import container, stopped

TCP, UDP = Port.parse("80:8080"), Port.parse("80:8080/udp")


@pytest.mark.parametrize(
    ("fields", "tcp", "udp"),
    [
        ({"accepting": frozenset({8080})}, True, True),
        ({"accepting": frozenset({80})}, False, True),
        ({"accepting": frozenset({8080}), "healthy": True}, True, True),
        ({"accepting": frozenset({8080}), "healthy": False}, False, False),
        ({"accepting": frozenset({8080}), "state": RunState.PAUSED}, True, True),
        ({"accepting": frozenset({8080}), "state": RunState.PAUSED, "healthy": False}, True, True),
        ({"accepting": frozenset(), "state": RunState.PAUSED}, False, True),
        ({"accepting": frozenset({8080}), "state": RunState.RESTARTING}, False, False),
        ({"accepting": frozenset({8080}), "state": RunState.EXITED}, False, False),
    ],
)
def test_serves(fields, tcp, udp):
    """TCP needs a connection accepted since the start; both need a container that runs and is healthy, or is paused."""
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
    assert missing(workload, [UDP, TCP], 1000.0) == expected
    assert is_ready(workload, [UDP, TCP], 1000.0) is (expected is None)


DATA = Port.parse("30023")
LISTENS = container(2, "a.b", accepting=frozenset({8080}), accepting_since=1000.0)


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (LISTENS, True),
        (replace(LISTENS, accepting=frozenset({8080, 30023})), False),
        (replace(LISTENS, accepting=frozenset()), False),
        (replace(LISTENS, healthy=False), False),
        (replace(LISTENS, state=RunState.PAUSED), False),
        (stopped(LISTENS), False),
    ],
    ids=["other listens", "listens itself", "none listens", "unhealthy", "paused", "stopped"],
)
def test_a_port_may_open_beside_one_that_listens(workload, expected):
    """A program that opens a port for one client listens on another; without that it is still starting."""
    assert may_open(workload, DATA, [TCP, DATA, UDP]) is expected
    assert not may_open(workload, UDP, [TCP, DATA, UDP])


def test_nothing_waits_for_ever_for_a_port_that_opens_on_demand():
    """It is waited for as long as programs need from their first port to their last; not where none listens."""
    for now, words in ((1000.0, "waiting for port 30023"), (1009.9, "waiting for port 30023"), (1010.1, None)):
        assert missing(LISTENS, [TCP, DATA], now) == words
        assert settles_in(LISTENS, [TCP, DATA], now) == pytest.approx(1010.0 - now if words else inf)
    assert missing(LISTENS, [TCP, DATA], 900.0) is None, "the clock was set back"
    assert missing(replace(LISTENS, healthy=False), [TCP, DATA], 1010.1) is not None
    assert missing(replace(LISTENS, accepting=frozenset(), accepting_since=0.0), [TCP, DATA], 2000.0) is not None
    assert settles_in(LISTENS, [TCP], 1001.0) == inf
