"""What is looked up to learn where programs take connections and datagrams."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.model.facts import Probe, RunState
from appliance.model.names import Protocol
from appliance.plan.compile import Compiler
from appliance.plan.turns import at_once
from tests.plan.cases import address, container, declared, managed, snapshot, spec, stopped

SERVER = container(2, "apple.orange", ports=("80:8080", 81, "53/udp"), bound=frozenset(), started_at=5.0)
PORTS = ((Protocol.TCP, 81), (Protocol.TCP, 8080), (Protocol.UDP, 53))


def looked_up(*workloads, **fields) -> set[Probe]:
    """What the plan of a host with these containers wants to be looked up."""
    return set(at_once(Compiler().compile(snapshot(*workloads, **fields))).probes)


def test_ports_of_the_container() -> None:
    """Its own ports, not those of the mesh, at all its addresses."""
    assert looked_up(SERVER) == {Probe(SERVER.id, SERVER.netns.id, SERVER.netns.path, 5.0, (address(2),), PORTS)}


def test_a_port_with_several_names_is_looked_up_once() -> None:
    """Two ports of the mesh may lead to one of the container."""
    (probe,) = looked_up(container(2, "apple.orange", ports=("80:8080", "81:8080"), started_at=5.0))
    assert probe.ports == ((Protocol.TCP, 8080),)


def test_what_has_a_program_is_looked_up_still() -> None:
    """It may end, while the container goes on."""
    (probe,) = looked_up(container(2, "apple.orange", ports=("80:8080", 81, "53/udp"), started_at=5.0))
    assert probe.ports == PORTS


def test_rules_of_its_own_are_told() -> None:
    """Such a container may serve a port without a socket."""
    (probe,) = looked_up(replace(SERVER, own_rules=True))
    assert probe.own_rules


@pytest.mark.parametrize(
    "other",
    [
        replace(SERVER, started_at=0.0),
        replace(SERVER, problem="it uses the host's network"),
        replace(SERVER, attachments=()),
        replace(SERVER, netns=None),
        replace(SERVER, ports=()),
        stopped(SERVER),
    ],
    ids=["not started", "problem", "no address", "no namespace", "no ports", "stopped"],
)
def test_nobody_is_looked_at_that_cannot_answer(other) -> None:
    """Its program does not run, there is no way to it, or nobody asks."""
    assert looked_up(other) == set()


def test_the_kernel_answers_for_a_paused_program() -> None:
    """So one that was paused before the appliance started becomes a backend too."""
    assert looked_up(replace(SERVER, state=RunState.PAUSED)) == looked_up(SERVER)


def test_deployed_spec_wins_over_labels() -> None:
    """Ports of a container that meshbox made are those of the spec, also when that changes."""
    shop = spec("shop", declared("web", (80,)))
    web = replace(managed(2, shop), started_at=5.0)
    assert [probe.ports for probe in looked_up(web, specs=[shop])] == [((Protocol.TCP, 80),)]
    both = spec("shop", declared("web", (80, 90)))
    assert [probe.ports for probe in looked_up(web, specs=[both])] == [((Protocol.TCP, 80), (Protocol.TCP, 90))]
