"""How what is seen of Docker changes the facts. A namespace is a link to the test's own."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from fakedocker import BRIDGE, FakeDocker, cid

from appliance.drivers.docker.types import Event
from appliance.drivers.docker.workloads import STARTING_LIFE, WorkloadStore
from appliance.drivers.netns import identity
from appliance.faults import Faults
from appliance.model.facts import Attachment, BoundPort, RunState, UnreachedPort
from appliance.model.names import Protocol
from appliance.model.network import Netns

LABELS = {"meshbox.service": "flask", "meshbox.container": "web"}
HERE = IPv4Address("172.17.0.2")
WEB = frozenset({BoundPort(Protocol.TCP, 80)})
LOCAL = frozenset({UnreachedPort(Protocol.TCP, 81, "at 127.0.0.1")})


class Scene:
    """A store, and the container c2 as Docker shows it."""

    def __init__(self, directory) -> None:
        self.urgent: list[bool] = []
        self.fresh: list = []
        self.faults = Faults()
        self.directory = directory
        (directory / "one").symlink_to("/proc/self/ns/net")
        self.store = WorkloadStore(
            netns_dir=directory,
            changed=lambda *, urgent: self.urgent.append(urgent),
            fresh_netns=self.fresh.append,
            faults=self.faults,
        )
        self.store.networks = {"bridge": BRIDGE}
        self.docker = FakeDocker()
        self.docker.add(2, LABELS)

    @property
    def inspected(self):
        """What inspect shows."""
        return self.docker.there[cid(2)]

    @property
    def workload(self):
        """What the store has."""
        return self.store.by_id[cid(2)]

    def begin_start(self, *, attached: bool = True) -> bool:
        """Let its namespace appear, with its address on the bridge."""
        path = str(self.directory / "one")
        at = Attachment(network="bridge", address=IPv4Address("172.17.0.2"), gateway=IPv4Address("172.17.0.1"))
        netns = Netns(id=identity.identify(path), path=path)
        return self.store.begin_start(cid(2), netns, (at,) if attached else ())


@pytest.fixture
def scene(tmp_path):
    """A scene with an empty store."""
    return Scene(tmp_path)


def test_same_again_changes_nothing(scene):
    """What is seen a second time rings no bell."""
    scene.store.update(scene.inspected, None)
    before = list(scene.urgent)
    scene.store.update(scene.inspected, None)
    assert scene.urgent == before
    assert len(scene.fresh) == 1


def test_a_network_that_is_left_is_urgent(scene):
    """With it the address goes at which the container is dialled; of its health nobody need hurry."""
    scene.store.update(scene.inspected, None)
    scene.store.update(replace(scene.inspected, healthy=False), None)
    assert scene.urgent[-1] is False
    scene.store.update(replace(scene.inspected, healthy=False, joined=()), None)
    assert scene.urgent[-1] is True


def test_start_is_urgent_and_fresh(scene):
    """Its namespace is told as fresh before the urgent change, and nothing serves in it."""
    scene.store.add(scene.inspected.listed)
    assert scene.begin_start()
    assert scene.urgent[-1] is True
    assert scene.fresh == [scene.workload.netns.id]
    assert scene.store.is_starting(cid(2))
    assert not scene.store.is_settled(cid(2))


def test_dockers_word_completes_a_start(scene):
    """Docker's own word ends the start; the namespace is not fresh a second time."""
    scene.store.add(scene.inspected.listed)
    scene.begin_start()
    scene.store.update(scene.inspected, None)
    assert scene.workload.started_at == 900.0
    assert scene.store.is_settled(cid(2))
    assert len(scene.fresh) == 1


def test_late_namespace_is_nothing_new(scene):
    """A namespace that Docker has shown already begins no start."""
    scene.store.update(scene.inspected, None)
    assert not scene.begin_start()
    assert scene.workload.started_at == 900.0


def test_starts_are_counted_when_their_rules_are_in_place(scene):
    """One that was not seen is late, unless its namespace is another's, or it began before the store did."""
    scene.store.update(scene.inspected, None)
    scene.store.punctuality.rules_in_place(scene.workload.netns.id)
    assert scene.store.punctuality.late == 0, "it runs for long"
    scene.store.remove(cid(2))
    scene.docker.change(cid(2), started_at=9e9)
    scene.store.update(scene.inspected, None)
    scene.docker.add(3, LABELS, started_at=9e9)
    scene.store.update(scene.docker.there[cid(3)], None)
    assert scene.workload.netns == scene.store.by_id[cid(3)].netns
    for _ in range(2):
        scene.store.punctuality.rules_in_place(scene.workload.netns.id)
    assert (scene.store.punctuality.in_time, scene.store.punctuality.late) == (0, 1)


def test_start_without_a_known_network_waits(scene):
    """Without a bridge network for its address there is nothing to publish yet, but later addresses are wanted."""
    scene.store.add(scene.inspected.listed)
    assert scene.begin_start(attached=False)
    assert scene.workload.netns is None
    scene.store.punctuality.ended(scene.workload.id)
    assert scene.store.punctuality.late == 0


def test_start_of_nobody_known_is_no_start(scene):
    """A container that was removed meanwhile is not brought back."""
    assert not scene.begin_start()
    assert not scene.store.by_id


def test_start_is_abandoned_with_its_namespace(scene):
    """The file of another namespace means nothing; after its own the container is stopped, and named once."""
    scene.store.add(scene.inspected.listed)
    scene.begin_start()
    assert scene.store.abandon_start(str(scene.directory / "two")) is None
    assert scene.workload.netns is not None
    assert scene.store.abandon_start(str(scene.directory / "one")) == cid(2)
    assert (scene.workload.netns, scene.workload.addresses) == (None, ())
    assert scene.store.abandon_start(str(scene.directory / "one")) is None


def test_only_one_that_connects_is_named(scene):
    """Of two on their way neither is guessed; one that is removed is on its way no more."""
    assert scene.store.only_connecting() is None
    scene.store.begin_connecting(cid(2), "bridge")
    scene.store.begin_connecting(cid(2), "other")
    assert scene.store.only_connecting() == cid(2)
    assert scene.store.connecting == {cid(2): ["bridge", "other"]}
    scene.store.begin_connecting(cid(3), "bridge")
    assert scene.store.only_connecting() is None
    scene.store.remove(cid(3))
    assert scene.store.only_connecting() == cid(2)
    scene.store.end_connecting(cid(2))
    assert scene.store.only_connecting() is None


def test_old_word_does_not_undo_a_start(scene, monkeypatch):
    """While a start is under way `created` is old news; after a minute it is believed."""
    scene.store.add(scene.inspected.listed)
    scene.begin_start()
    scene.docker.change(cid(2), state=RunState.CREATED)
    scene.store.update(scene.inspected, None)
    assert scene.workload.netns is not None
    now = scene.store._starting[cid(2)].since
    monkeypatch.setattr("appliance.drivers.docker.workloads.time.time", lambda: now + STARTING_LIFE + 1)
    scene.store.update(scene.inspected, None)
    assert scene.workload.state is RunState.CREATED
    assert scene.workload.netns is None


def test_die_before_the_start_is_of_the_former_run(scene):
    """At a restart the old run's `die` may arrive after the new namespace: it changes nothing."""
    scene.store.add(scene.inspected.listed)
    scene.begin_start()
    scene.store.died(Event(kind="container", action="die", id=cid(2), time=1000.0))
    assert scene.workload.netns is not None


def test_ports_are_of_one_namespace(scene):
    """What was looked up counts for that namespace, and only while it is the workload's."""
    scene.store.update(scene.inspected, None)
    netns = scene.workload.netns.id
    scene.store.seen(cid(2), netns, WEB, LOCAL)
    assert (scene.workload.bound, scene.workload.unreached) == (WEB, LOCAL)
    since = scene.workload.bound_since
    assert 0 < since <= time.time()
    scene.store.seen(cid(2), netns, WEB | {BoundPort(Protocol.UDP, 53)}, LOCAL)
    scene.store.update(scene.inspected, None)
    assert scene.workload.bound_since == since, "that of the first port"
    scene.store.died(Event(kind="container", action="die", id=cid(2), time=1000.0))
    scene.store.seen(cid(2), netns, WEB, LOCAL)
    assert (scene.workload.bound, scene.workload.unreached) == (frozenset(), frozenset())
    assert scene.workload.bound_since == 0


def test_a_port_that_has_gone_is_urgent(scene):
    """It must not be dialled any more; one that has come can wait for others, and the same again is no change."""
    scene.store.update(scene.inspected, None)
    scene.urgent.clear()
    for bound, rings in ((WEB, [False]), (WEB, []), (WEB | {BoundPort(Protocol.UDP, 53)}, [False]), (WEB, [True])):
        scene.store.seen(cid(2), scene.workload.netns.id, bound, frozenset())
        assert scene.urgent == rings
        scene.urgent.clear()
    scene.store.seen(cid(2), scene.workload.netns.id, frozenset({BoundPort(Protocol.TCP, 80, HERE)}), frozenset())
    assert scene.urgent == [True], "it is dialled elsewhere now"
    scene.store.seen(cid(2), scene.workload.netns.id, frozenset(), frozenset())
    assert scene.workload.bound_since == 0, "its program begins anew"


def test_namespace_elsewhere_is_found_and_reported(scene, tmp_path):
    """Where Docker keeps its namespaces elsewhere they are used all the same, and the operator is told what to set."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "two").symlink_to("/proc/self/ns/net")
    scene.docker.change(cid(2), sandbox_key=str(other / "two"))
    scene.store.update(scene.inspected, None)
    assert scene.workload.netns.path == str(other / "two")
    assert "netns_dir" in scene.faults.list()


def test_removed_is_gone(scene):
    """A removed container is forgotten at once; removing it again is nothing."""
    scene.store.update(scene.inspected, None)
    scene.store.remove(cid(2))
    changes = len(scene.urgent)
    scene.store.remove(cid(2))
    assert not scene.store.by_id
    assert len(scene.urgent) == changes
