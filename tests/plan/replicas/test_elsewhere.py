"""How far the replicas of other machines have come."""

from __future__ import annotations

from dataclasses import replace

from appliance.plan.replicas.elsewhere import UNSEEN, elsewhere
from appliance.plan.replicas.placement import placement
from appliance.plan.replicas.rollout import revision
from tests.plan.cases import SETTINGS, declared, endpoint, machine, snapshot, spec

SHOP = spec("shop", declared("web", (80, "80/udp")), count=6)
WANTED = revision(SHOP.containers[0])
MACHINES = (machine("here", "10.0.0.1"), machine("m2", "10.0.0.2"), machine("m3", "10.0.0.3"))


def announced(port: str, node: str, **revisions: int):
    """That a machine serves so many containers, by revision."""
    counts = tuple(sorted(revisions.items()))
    return replace(endpoint(f"web.shop:{port}", node, weight=sum(revisions.values())), revisions=counts)


def shown(*endpoints, service=SHOP):
    """State and readiness of each replica by machine, in order of their numbers."""
    rows = elsewhere(snapshot(specs=[service], machines=MACHINES, endpoints=endpoints), ["shop", "no-such"])
    return {node: [(p.state, p.ready) for p in rows if p.machine == node] for node in ("here", "m2", "m3")}


def test_only_what_is_placed_elsewhere():
    """Each replica of another machine has a row, this machine's own have none."""
    placed = placement(SHOP, SETTINGS, MACHINES)
    rows = elsewhere(snapshot(specs=[SHOP], machines=MACHINES), ["shop"])
    assert {(p.key.replica, p.machine) for p in rows} == {(n, o) for n, o in enumerate(placed) if o != "here"}
    assert elsewhere(snapshot(specs=[SHOP], machines=MACHINES), []) == ()


def test_ready_is_what_is_announced_for_every_port():
    """As many replicas are ready as have the wanted revision on all ports; nothing is taken on trust."""
    found = shown(
        announced("80", "m2", **{WANTED: 9}), announced("80/udp", "m2", **{WANTED: 1}), announced("80", "m3", old=2)
    )
    first, *rest = found["m2"]
    assert first == ("ready", True)
    assert rest
    assert all(one == ("waiting for m2 to announce it", False) for one in rest)
    assert all(one == ("old revision serves on m3", False) for one in found["m3"])
    assert found["here"] == []


def test_without_ports_nobody_waits():
    """A container that offers nothing announces nothing, so it is shown and not waited for."""
    found = shown(service=spec("shop", declared("web", ()), count=6))
    assert found["m2"]
    assert all(one == (UNSEEN, True) for one in found["m2"] + found["m3"])
