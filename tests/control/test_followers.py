"""What is done with a plan beside the network state, and when."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import trio
from structlog.testing import capture_logs

from appliance.control.followers import PlanFollowers
from appliance.faults import Faults
from appliance.model.facts import Probe, Settings
from appliance.model.names import Protocol
from appliance.model.network import NetnsId
from appliance.model.registry import Interests
from appliance.model.rollout import ReplicaKey
from appliance.plan.compile import Compiler
from appliance.plan.turns import at_once
from tests.plan.cases import OWN, container, managed, snapshot, spec

PROBE = Probe(
    "a" * 64, NetnsId(device=4, inode=2), "/netns/2", 1.0, (IPv4Address("172.18.0.2"),), ((Protocol.TCP, 80),)
)
FACTS = snapshot(specs=[spec("shop")], settings=Settings(node="here"))
PLAN = replace(
    at_once(Compiler().compile(FACTS)),
    probes=frozenset({PROBE}),
    claims=frozenset({"shop/0/web"}),
    interests=Interests(services=frozenset({"shop"})),
)


class Parts:
    """All that plans are handed to; `told` has what each was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.faults = Faults()
        self.followers = PlanFollowers(
            containers=self,
            registry=self,
            deployer=self,
            host_access=self,
            unneeded=lambda: self.told.append(("tidy",)),
            faults=self.faults,
        )

    def probe(self, wanted) -> None:
        self.told.append(("probe", wanted))

    def claim(self, claims) -> None:
        self.told.append(("claim", claims))

    def watch(self, services) -> None:
        self.told.append(("watch", services))

    def submit(self, actions, *, unplanned) -> None:
        self.told.append(("submit", actions, unplanned))

    def changed(self) -> None:
        self.told.append(("host access",))


def test_ports_are_dialled_first_and_containers_follow_the_network() -> None:
    """A container is retired once its connections go elsewhere; what is claimed is known before what is given up."""
    parts = Parts()
    parts.followers.begin(PLAN)
    assert parts.told == [("probe", PLAN.probes)]
    busy = frozenset({ReplicaKey(service="other", replica=0, container="web")})
    trio.run(parts.followers.finish, PLAN, replace(FACTS, busy=busy))
    assert [told[0] for told in parts.told[1:]] == ["claim", "watch", "submit", "host access"]
    assert parts.told[1:4] == [("claim", PLAN.claims), ("watch", PLAN.interests), ("submit", PLAN.actions, busy)]
    assert len(PLAN.actions) == 1


@pytest.mark.parametrize(
    ("facts", "tidied"),
    [
        (snapshot(networks=(OWN,)), True),
        (snapshot(container(2, "a.b"), networks=(OWN,)), True),
        (snapshot(), False),
        (snapshot(networks=(OWN,), specs=[spec("shop")]), False),
        (snapshot(managed(2, spec("shop")), networks=(OWN,)), False),
    ],
    ids=["nothing", "a container of others", "no network of ours", "a spec", "a container of ours"],
)
def test_network_that_nothing_needs_is_told(facts, tidied) -> None:
    """Ours is removed when neither a spec nor a container of ours is left."""
    parts = Parts()
    trio.run(parts.followers.finish, PLAN, facts)
    assert (("tidy",) in parts.told) == tidied


def test_a_service_that_no_machine_allows_is_told_once() -> None:
    """It is a fault with its reason, counted while it lasts, and gone once the service is mended or removed."""
    parts = Parts()
    held = replace(PLAN, refused={"pwn": "no machine allows what it asks for: /etc on here"})
    with capture_logs() as lines:
        for plan in (held, held, PLAN):
            trio.run(parts.followers.finish, plan, FACTS)
            faults = dict(parts.faults.list())
            assert len(faults) == len(plan.refused)
    (line,) = (line for line in lines if line["log_level"] == "warning")
    assert line["service"] == "pwn"
    assert "/etc on here" in line["cause"]
    assert "allow_host_paths" in line["event"]
    assert parts.faults.total == 2
