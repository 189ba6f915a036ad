"""Facts."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from ipaddress import IPv4Address

import pytest

from appliance.model.facts import Allocations, Attachment, Machine, RunState, Settings, Snapshot, Workload
from appliance.model.names import Name

BACK, FRONT = IPv4Address("172.18.0.2"), IPv4Address("172.19.0.2")


def test_addresses_are_in_the_order_of_networks():
    """The first network's address comes first; a network without IPv4 has none."""
    networks = (("back", BACK), ("six", None), ("front", FRONT))
    workload = Workload(
        id="0" * 64,
        docker_name="web",
        name=Name.parse("web.web"),
        state=RunState.RUNNING,
        attachments=tuple(Attachment(network=n, address=a, gateway=None) for n, a in networks),
    )
    assert workload.addresses == (BACK, FRONT)
    assert replace(workload, attachments=()).addresses == ()


def test_run_states_are_dockers_words():
    """Docker's API spells them in lower case."""
    assert RunState("running") is RunState.RUNNING
    assert {str(state) for state in RunState} == {
        *("created", "running", "paused", "restarting", "removing", "exited", "dead")
    }


def test_facts_are_compared_by_content_and_never_change():
    """Two snapshots of the same moment are equal; one cannot be edited behind the back of its reader."""
    one, two = (Snapshot(now=1.0, settings=Settings(node="m1")) for _ in range(2))
    assert one == two
    assert one != replace(two, going=frozenset({"1"}))
    with pytest.raises(FrozenInstanceError):
        one.now = 2.0
    assert one.allocations == Allocations()


def test_a_machine_is_healthy_until_said_otherwise():
    """A registry without health checks makes no machine unfit."""
    machine = Machine(node="m1", address=BACK)
    assert machine.healthy
    assert machine.answers
    assert not machine.gateway
