"""What is dialled to learn when a program accepts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.model.facts import Probe, RunState
from appliance.plan.compile import Compiler
from appliance.plan.turns import at_once
from tests.plan.cases import address, container, declared, managed, snapshot, spec, stopped

SERVER = replace(container(2, "apple.orange", ports=("80:8080", 81, "53/udp")), accepting=frozenset(), started_at=5.0)


def dialled(*workloads, **fields) -> set[Probe]:
    """What the plan of a host with these containers wants to be dialled."""
    return set(at_once(Compiler().compile(snapshot(*workloads, **fields))).probes)


def test_ports_of_the_container_by_tcp() -> None:
    """Its own ports, not those of the mesh; a datagram is answered by nobody."""
    assert dialled(SERVER) == {
        Probe(SERVER.id, SERVER.netns.id, address(2), port, SERVER.netns.path) for port in (8080, 81)
    }


def test_what_has_accepted_is_left_alone() -> None:
    """Port by port."""
    ports = {probe.port for probe in dialled(replace(SERVER, accepting=frozenset({81})))}
    assert ports == {8080}


@pytest.mark.parametrize(
    "other",
    [
        replace(SERVER, started_at=0.0),
        replace(SERVER, problem="it uses the host's network"),
        replace(SERVER, attachments=()),
        replace(SERVER, netns=None),
        stopped(SERVER),
    ],
    ids=["not started", "problem", "no address", "no namespace", "stopped"],
)
def test_nobody_is_dialled_that_cannot_answer(other) -> None:
    """Its program does not run, or there is no way to it."""
    assert dialled(other) == set()


def test_the_kernel_answers_for_a_paused_program() -> None:
    """So one that was paused before the appliance started becomes a backend too."""
    assert dialled(replace(SERVER, state=RunState.PAUSED)) == dialled(SERVER)


def test_deployed_spec_wins_over_labels() -> None:
    """Ports of a container that meshbox made are those of the spec, also when that changes."""
    shop = spec("shop", declared("web", (80,)))
    web = replace(managed(2, shop), accepting=frozenset(), started_at=5.0)
    assert {probe.port for probe in dialled(web, specs=[shop])} == {80}
    assert {probe.port for probe in dialled(web, specs=[spec("shop", declared("web", (80, 90)))])} == {80, 90}
