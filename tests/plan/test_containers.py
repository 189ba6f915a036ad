"""Containers of the mesh and the namespaces they live in."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from appliance.model.facts import Attachment, DockerNetwork, RunState
from appliance.plan.compile import compile_host
from appliance.plan.containers import MeshContainers, grouped, kept_addresses
from tests.plan.cases import BRIDGE, GATEWAY, address, container, declared, managed, snapshot, spec, stopped

NETWORKS = {"bridge": BRIDGE}


def test_problem_is_left_out():
    """A container that cannot be in the mesh is left out."""
    fit, unfit = container(2, "a.b"), container(3, "a.b", problem="host network")
    assert [m.workload for m in MeshContainers().read(snapshot(unfit, fit))] == [fit]


def test_unchanged_containers_are_the_same_objects():
    """Only what changed is made anew, also when the facts about a container are equal but new."""
    containers = MeshContainers()
    one, two = container(2, "a.b"), managed(3, spec("web"))
    before = containers.read(snapshot(one, two, specs=[spec("web")]))
    after = containers.read(snapshot(replace(one), replace(two), specs=[spec("web")]))
    assert all(b is a for b, a in zip(before, after, strict=True))
    changed = containers.read(snapshot(one, two, specs=[spec("web", declared("web", ports=(81,)))]))
    assert changed[0] is before[0]
    assert changed[1].declared.ports != before[1].declared.ports


@pytest.mark.parametrize("state", [RunState.EXITED, RunState.DEAD])
def test_ended_containers_have_no_namespace(state):
    """Docker may still show the namespace of a container that has just ended."""
    (found,) = MeshContainers().read(snapshot(container(2, "a.b", state=state)))
    assert found.netns is None
    assert grouped([found], NETWORKS) == ()


def test_shared_namespace_is_one_group():
    """Containers that share a namespace share addresses and published ports, though only one of them shows them."""
    owner = container(2, "a.b")
    guest = container(3, "c.d", netns=owner.netns, attachments=(), published=frozenset({("tcp", 80)}))
    (group,) = grouped(MeshContainers().read(snapshot(guest, owner)), NETWORKS)
    assert [m.workload for m in group.containers] == [owner, guest]
    assert group.address == address(2)
    assert group.published == {("tcp", 80)}


def test_gateways():
    """All of the host's addresses on its networks, of both families; the first IPv4 one is the way to the proxy."""
    dual = Attachment(
        network="dual", address=address(9), gateway=IPv4Address("172.20.0.1"), gateway6=IPv6Address("fd00::1")
    )
    workload = container(2, "a.b")
    workload = replace(workload, attachments=(dual, *workload.attachments))
    (group,) = grouped(MeshContainers().read(snapshot(workload)), NETWORKS)
    assert group.proxy == IPv4Address("172.20.0.1")
    assert group.gateways == {IPv4Address("172.20.0.1"), IPv6Address("fd00::1"), GATEWAY}
    assert group.address == address(9)


@pytest.mark.parametrize("joined", ["aaa", "zzz"])
def test_a_namespace_keeps_its_address_among_networks_that_come_and_go(joined):
    """Docker tells networks in the order of their names. With the address goes the host's own on that network."""
    other = Attachment(network=joined, address=IPv4Address("172.20.0.9"), gateway=IPv4Address("172.20.0.1"))
    alone = container(2, "a.b")
    both = replace(alone, attachments=tuple(sorted((*alone.attachments, other), key=lambda a: a.network)))
    moved = replace(alone, attachments=(other,))
    rulesets, seen = {}, []
    for workload in (alone, both, alone, both, moved, both):
        facts = snapshot(workload, networks=(BRIDGE,), kept=kept_addresses([workload], rulesets))
        want = compile_host(facts)
        rulesets = want.rulesets
        (rules,) = rulesets.values()
        seen.append((str(rules.address), str(rules.proxy)))
    home, away = (str(address(2)), str(GATEWAY)), ("172.20.0.9", "172.20.0.1")
    assert seen == [home, home, home, home, away, away]


def test_internal_network():
    """An internal network tells containers no gateway; the host's address there comes from the network itself."""
    internal = DockerNetwork(name="internal", driver="bridge", internal=True, gateways=(IPv4Address("172.30.0.1"),))
    attachment = Attachment(network="internal", address=IPv4Address("172.30.0.2"), gateway=None)
    containers = MeshContainers().read(snapshot(container(2, "a.b", attachments=(attachment,))))
    (group,) = grouped(containers, {"internal": internal})
    assert group.proxy == IPv4Address("172.30.0.1")
    assert group.internal
    assert not grouped(MeshContainers().read(snapshot(container(2, "a.b"))), NETWORKS)[0].internal
    assert grouped(containers, {}) == ()


def test_stopped_has_no_group():
    """Without a namespace there is nothing to put rules into."""
    assert grouped(MeshContainers().read(snapshot(stopped(container(2, "a.b")))), NETWORKS) == ()
