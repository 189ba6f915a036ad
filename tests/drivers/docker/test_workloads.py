"""How what is seen of Docker changes the facts. A namespace is a link to the test's own."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from fakedocker import BRIDGE, FakeDocker, cid

from appliance.drivers.docker.prestart import StartingContainer
from appliance.drivers.docker.types import Event
from appliance.drivers.docker.workloads import STARTING_LIFE, WorkloadStore
from appliance.drivers.netns import identity as namespaces
from appliance.faults import Faults
from appliance.model.facts import RunState
from appliance.model.network import Netns

LABELS = {"meshbox.service": "flask", "meshbox.container": "web"}


class Scene:
    """A roster, and the container c2 as Docker shows it."""

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
        """What the roster has."""
        return self.store.table[cid(2)]

    def newborn(self) -> StartingContainer:
        """Return the appearance of its namespace."""
        path = str(self.directory / "one")
        return StartingContainer(
            container_id=cid(2),
            netns=Netns(id=namespaces.identify(path), path=path),
            addresses=(IPv4Address("172.17.0.2"),),
        )


@pytest.fixture
def scene(tmp_path):
    """A scene with an empty roster."""
    return Scene(tmp_path)


def test_same_again_changes_nothing(scene):
    """What is seen a second time rings no bell."""
    scene.store.seen(scene.inspected, None)
    before = list(scene.urgent)
    scene.store.seen(scene.inspected, None)
    assert scene.urgent == before
    assert len(scene.fresh) == 1


def test_birth_is_urgent_and_fresh(scene):
    """A newborn's namespace is told as fresh before the urgent change, and nothing serves in it."""
    scene.store.sketch(scene.inspected.listed)
    assert scene.store.born(scene.newborn())
    assert scene.urgent[-1] is True
    assert scene.fresh == [scene.workload.netns.id]
    assert scene.store.is_starting(cid(2))
    assert not scene.store.is_settled(cid(2))


def test_start_completes_the_newborn(scene):
    """Docker's own word ends the start; the namespace is not fresh a second time."""
    scene.store.sketch(scene.inspected.listed)
    scene.store.born(scene.newborn())
    scene.store.seen(scene.inspected, None)
    assert scene.workload.started_at == 900.0
    assert scene.store.is_settled(cid(2))
    assert len(scene.fresh) == 1


def test_late_birth_is_nothing_new(scene):
    """A namespace that Docker has told of already is no newborn."""
    scene.store.seen(scene.inspected, None)
    assert not scene.store.born(scene.newborn())
    assert scene.workload.started_at == 900.0


def test_birth_without_a_known_network_waits(scene):
    """Without a bridge network for its address there is nothing to publish yet."""
    scene.store.networks = {}
    scene.store.sketch(scene.inspected.listed)
    assert scene.store.born(scene.newborn())
    assert scene.workload.netns is None


def test_old_word_does_not_undo_a_birth(scene, monkeypatch):
    """While a start is under way `created` is old news; after a minute it is believed."""
    scene.store.sketch(scene.inspected.listed)
    scene.store.born(scene.newborn())
    scene.docker.change(cid(2), state=RunState.CREATED)
    scene.store.seen(scene.inspected, None)
    assert scene.workload.netns is not None
    now = scene.store._starting[cid(2)].since
    monkeypatch.setattr("appliance.drivers.docker.workloads.time.time", lambda: now + STARTING_LIFE + 1)
    scene.store.seen(scene.inspected, None)
    assert scene.workload.state is RunState.CREATED
    assert scene.workload.netns is None


def test_die_before_the_birth_is_of_the_former_run(scene):
    """At a restart the old run's `die` may arrive after the new namespace: it changes nothing."""
    scene.store.sketch(scene.inspected.listed)
    scene.store.born(scene.newborn())
    scene.store.died(Event(kind="container", action="die", id=cid(2), time=1000.0))
    assert scene.workload.netns is not None


def test_accepting_is_of_one_namespace(scene):
    """A probe's success counts for the namespace that was dialled, and only while it is the workload's."""
    scene.store.seen(scene.inspected, None)
    netns = scene.workload.netns.id
    scene.store.accepted(cid(2), netns, 80)
    assert scene.workload.accepting == {80}
    scene.store.died(Event(kind="container", action="die", id=cid(2), time=1000.0))
    scene.store.accepted(cid(2), netns, 80)
    assert scene.workload.accepting == frozenset()


def test_namespace_elsewhere_is_found_and_reported(scene, tmp_path):
    """Where Docker keeps its namespaces elsewhere they are used all the same, and the operator is told what to set."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "two").symlink_to("/proc/self/ns/net")
    scene.docker.change(cid(2), sandbox_key=str(other / "two"))
    scene.store.seen(scene.inspected, None)
    assert scene.workload.netns.path == str(other / "two")
    assert "netns_dir" in scene.faults.list()


def test_removed_is_gone(scene):
    """A removed container is forgotten at once; removing it again is nothing."""
    scene.store.seen(scene.inspected, None)
    scene.store.remove(cid(2))
    changes = len(scene.urgent)
    scene.store.remove(cid(2))
    assert not scene.store.table
    assert len(scene.urgent) == changes
