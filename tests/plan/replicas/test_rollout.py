"""Containers of deployed services: what is done next, told as a sequence of observations."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given

from appliance.drivers.consul.codec import TTL
from appliance.model.facts import RunState
from appliance.model.names import Allowance, Destination, Port
from appliance.model.privileges import Privileges
from appliance.model.rollout import Create, ReplicaKey, Retire, Start
from appliance.model.spec import Health
from appliance.plan.replicas.placement import placement
from appliance.plan.replicas.rollout import (
    CLAIM,
    claims,
    images,
    progress,
    refused,
    replicas,
    retiring,
    revision,
    rollout,
    startable,
)
from appliance.spec.constraint import parse_constraint
from tests.plan.cases import (
    SETTINGS,
    container,
    declared,
    endpoint,
    machine,
    managed,
    snapshot,
    snapshots,
    spec,
    stopped,
)

HEARD = 2.0
"""Seconds until other machines have heard of a claim and acted on it, with a second to spare."""
OLD = spec("web", declared("web", ports=(80,), image="old"), count=2)
NEW = spec("web", declared("web", ports=(80,), image="new"), count=2)


def going(s):
    """The ids of containers that are to go."""
    return retiring(s, rollout(s))


def does(s, *busy) -> list[str]:
    """The actions in words that can begin while others are under way: `create web/0/web`, `retire c2`."""
    s = replace(s, busy=frozenset(busy))
    ids = {w.id: w.docker_name for w in s.workloads}
    return [
        f"create {a.key}" if isinstance(a, Create) else f"{type(a).__name__.lower()} {ids[a.workload_id]}"
        for a in startable(s, rollout(s))
    ]


def key(replica: int = 0) -> ReplicaKey:
    """The key of web's container."""
    return ReplicaKey(service="web", replica=replica, container="web")


def not_ready(workload):
    """The same container before its port accepts."""
    return replace(workload, bound=frozenset())


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"ports": (Port.parse(81),)}, True),
        ({"connect_to": (Allowance.parse("a.b"),)}, True),
        ({"image": "other"}, False),
        ({"cpu": 500}, False),
        ({"memory": 256}, False),
        ({"command": ("sh",)}, False),
        ({"env": (("A", "1"),)}, False),
        ({"volumes": ("data:/data",)}, False),
        ({"cap_add": ("NET_ADMIN",)}, False),
        ({"cap_drop": ("NET_RAW",)}, False),
        ({"health": Health(command="true")}, False),
        ({"health": Health(command=("true",), interval=1)}, False),
    ],
)
def test_revision(change, same):
    """Whatever a container is made with changes its revision; what only the mesh applies does not."""
    c = declared("web", image="old")
    assert (revision(replace(c, **change)) == revision(c)) is same
    assert len(revision(c)) == 8
    assert revision(c) == "76594a93"  # containers made by an earlier version must not be replaced for nothing


def test_missing_are_created_all_at_once():
    """A first deploy does not wait for one replica after another."""
    assert does(snapshot(specs=[OLD])) == ["create web/0/web", "create web/1/web"]


def test_images_of_a_deploy():
    """Those of the containers that would be made here: not of those that are there, nor of another machine's."""
    both = spec("web", declared("web", ports=(80,), image="new"), declared("log", image="extra"), count=2)
    assert images(snapshot(), [both]) == ("extra", "new")
    there = snapshot(managed(2, OLD, 0), stopped(managed(3, OLD, 1)), specs=[OLD])
    assert images(there, [OLD]) == ()
    assert images(there, [both]) == ("extra", "new")
    machines = (machine("m2", "10.0.0.2"), machine("here", "10.0.0.1"))
    assert images(snapshot(machines=machines), [replace(NEW, constraint=parse_constraint("m2"))]) == ()
    assert images(snapshot(machines=machines), [NEW]) == ("new",)


def test_settled_is_left_alone():
    """Deploying the same again does nothing."""
    assert does(snapshot(managed(2, OLD, 0), managed(3, OLD, 1), specs=[OLD])) == []


def test_busy_keys_are_left_alone():
    """What is under way is not begun again, and holds a replacement of the next replica."""
    assert does(snapshot(specs=[OLD]), key(0)) == ["create web/1/web"]
    assert does(snapshot(managed(2, OLD, 0), managed(3, OLD, 1), specs=[NEW]), key(0)) == []


def test_what_makes_way_does_so_while_something_is_under_way():
    """A surplus container gets no connections any more, although another action for its key has to end first."""
    a, b = managed(2, OLD, 0), managed(3, OLD, 1)
    s = snapshot(a, b, specs=[replace(OLD, count=1)], busy=frozenset({key(1)}))
    assert going(s) == {b.id}
    assert startable(s, rollout(s)) == ()


def test_count_down_and_up():
    """Surplus replicas are retired, the others not touched."""
    one = replace(OLD, count=1)
    assert does(snapshot(managed(2, OLD, 0), managed(3, OLD, 1), specs=[one])) == ["retire c3"]


@pytest.mark.parametrize("state", [RunState.EXITED, RunState.CREATED])
def test_stopped_is_started(state):
    """A container that ended comes back."""
    assert does(snapshot(stopped(managed(2, OLD, 0), state), managed(3, OLD, 1), specs=[OLD])) == ["start c2"]


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.RESTARTING])
def test_not_stopped_is_not_started(state):
    """What Docker or somebody else has in hand is left to them."""
    assert does(snapshot(managed(2, OLD, 0, state=state), managed(3, OLD, 1), specs=[OLD])) == []


def test_dead_and_removing_hold_the_name():
    """A container that Docker fails to remove is retired; none of its name is created until it is gone."""
    assert does(snapshot(managed(2, OLD, 0, state=RunState.DEAD), managed(3, OLD, 1), specs=[OLD])) == ["retire c2"]
    assert does(snapshot(managed(2, OLD, 0, state=RunState.REMOVING), managed(3, OLD, 1), specs=[OLD])) == []


def test_replacement_starts_first_and_goes_replica_by_replica():
    """The whole way from one revision to the next, with two replicas."""
    a, b, c, d = managed(2, OLD, 0), managed(3, OLD, 1), managed(4, NEW, 0), managed(5, NEW, 1)
    assert does(snapshot(a, b, specs=[NEW])) == ["create web/0/web"]
    assert does(snapshot(a, b, not_ready(c), specs=[NEW])) == []
    assert does(snapshot(a, b, c, specs=[NEW])) == ["retire c2", "create web/1/web"]
    assert does(snapshot(b, c, specs=[NEW])) == ["create web/1/web"]
    assert does(snapshot(b, c, not_ready(d), specs=[NEW])) == []
    assert does(snapshot(b, c, d, specs=[NEW])) == ["retire c3"]
    assert does(snapshot(c, d, specs=[NEW])) == []


def test_revision_that_never_gets_ready():
    """The old one goes on serving, and the other replicas are not touched."""
    a, b, c = managed(2, OLD, 0), managed(3, OLD, 1), stopped(managed(4, NEW, 0), RunState.RESTARTING)
    assert does(snapshot(a, b, c, specs=[NEW])) == []
    assert going(snapshot(a, b, c, specs=[NEW])) == frozenset()


def test_way_back_from_a_bad_revision():
    """Deploying the old spec again only retires the failed container."""
    a, b, c = managed(2, OLD, 0), managed(3, OLD, 1), not_ready(managed(4, NEW, 0))
    assert does(snapshot(a, b, c, specs=[OLD])) == ["retire c4"]


def test_third_revision_while_the_second_is_not_ready():
    """The one that serves stays until the third is ready; the second goes when the third exists."""
    newer = spec("web", declared("web", ports=(80,), image="newer"), count=1)
    a, b, c = managed(2, OLD, 0), not_ready(managed(3, NEW, 0, started_at=5.0)), not_ready(managed(4, newer, 0))
    assert does(snapshot(a, b, specs=[newer])) == ["create web/0/web"]
    assert does(snapshot(a, b, c, specs=[newer])) == ["retire c3"]


def test_volumes_are_replaced_stop_first():
    """Two containers must not have the same data open: the old one goes before the new one comes."""
    old = spec("web", declared("web", ports=(80,), image="old", volumes=("d:/d",)), count=2)
    new = spec("web", declared("web", ports=(80,), image="new", volumes=("d:/d",)), count=2)
    a, b, c = managed(2, old, 0), managed(3, old, 1), managed(4, new, 0)
    assert does(snapshot(a, b, specs=[new])) == ["retire c2"]
    assert does(snapshot(b, specs=[new])) == ["create web/0/web"]
    assert does(snapshot(b, not_ready(c), specs=[new])) == []
    assert does(snapshot(b, c, specs=[new])) == ["retire c3"]
    dead = managed(5, old, 0, state=RunState.DEAD)
    assert does(snapshot(a, b, dead, specs=[new])) == ["retire c5", "retire c2"], "each once"


def test_one_changed_container_of_a_pod():
    """Only what changed is replaced."""
    old = spec("pod", declared("a", image="1"), declared("b", image="1"))
    new = spec("pod", declared("a", image="2"), declared("b", image="1"))
    a, b = managed(2, old, name="a"), managed(3, old, name="b")
    assert does(snapshot(a, b, specs=[new])) == ["create pod/0/a"]
    assert does(snapshot(a, b, specs=[spec("pod", declared("b", image="1"))])) == ["retire c2"]


def test_removed_service_and_orphan():
    """A tombstone retires everything; without one, and without a spec, containers are left alone."""
    a = managed(2, OLD, 0)
    assert does(snapshot(a, tombstones={"web": 5.0})) == ["retire c2"]
    assert does(snapshot(a)) == []
    assert does(snapshot(a, managed(3, OLD, 1), specs=[OLD], tombstones={"web": 5.0})) == []


def test_foreign_containers_are_never_touched():
    """A container that something else started may carry the same labels."""
    foreign = container(2, "web.web", ports=(80,))
    assert does(snapshot(foreign, tombstones={"web": 5.0})) == []
    assert does(snapshot(foreign, specs=[spec("web")])) == ["create web/0/web"]


def test_moved_replica_stays_until_the_other_machine_serves():
    """A replica that belongs elsewhere is retired once its machine announces the whole of its share."""
    machines = (machine("m2", "10.0.0.2"), machine("here", "10.0.0.1"))
    s = snapshot(managed(2, OLD, 0), managed(3, OLD, 1), specs=[OLD], machines=machines)
    placed = placement(OLD, s.settings, machines)
    assert sorted(placed) == ["here", "m2"]
    assert does(s) == []
    served = replace(s, endpoints=(endpoint("web.web:80", "m2"),))
    assert does(served) == [f"retire c{2 + placed.index('m2')}"]
    assert does(replace(s, endpoints=(endpoint("web.web:80", "m3", weight=9),))) == []
    assert [k.replica for k in replicas(s)] == [placed.index("here")]


def test_what_is_not_allowed_is_not_created_and_what_runs_goes_on():
    """A spec that no machine allows is told of; its containers of before are neither retired nor replaced."""
    mounting = spec("web", declared("web", ports=(80,), volumes=("/srv:/srv",)), count=2)
    strict = replace(SETTINGS, allows=Privileges())
    assert does(snapshot(specs=[mounting])) == ["create web/0/web", "create web/1/web"]
    s = snapshot(managed(2, mounting, 0), specs=[mounting], settings=strict)
    assert does(s) == []
    assert refused(s) == {"web": "no machine allows what it asks for: /srv on here"}
    assert refused(replace(s, settings=SETTINGS)) == {}
    assert does(snapshot(managed(2, mounting, 0, revision="0" * 8), specs=[mounting], settings=strict)) == []
    assert does(snapshot(managed(2, mounting, 0), tombstones={"web": 5.0}, settings=strict)) == ["retire c2"]


def test_what_is_not_allowed_here_moves_to_a_machine_that_allows_it():
    """The former machine serves until the other one does."""
    mounting = spec("web", declared("web", ports=(80,), volumes=("/srv:/srv",)))
    strict = replace(SETTINGS, allows=Privileges())
    s = snapshot(managed(2, mounting, 0), specs=[mounting], settings=strict, machines=(machine("m2", "10.0.0.2"),))
    assert does(s) == []
    assert refused(s) == {}
    assert does(replace(s, endpoints=(endpoint("web.web:80", "m2"),))) == ["retire c2"]


def test_moved_replica_is_given_up_when_claimed():
    """Its machine has run it for a while without getting ready: the former goes, and in less time than usual."""
    a, b = managed(2, OLD, 0), managed(3, OLD, 1)
    s = snapshot(a, b, specs=[OLD], machines=(machine("m2", "10.0.0.2"), machine("here", "10.0.0.1")))
    moved = placement(OLD, s.settings, s.machines).index("m2")

    def claimed(node, *keys):
        found = (replace(m, claims=frozenset(keys)) if m.node == node else m for m in s.machines)
        return replace(s, machines=tuple(found))

    assert does(claimed("m2", f"web/{moved}/web")) == [f"retire c{2 + moved}"]
    assert does(claimed("m2", f"web/{1 - moved}/web", "web/7/web")) == []
    assert does(claimed("here", f"web/{moved}/web")) == []
    assert going(claimed("m2", f"web/{moved}/web")) == {(a, b)[moved].id}
    (action,) = rollout(claimed("m2", f"web/{moved}/web"))
    assert CLAIM + action.drain + action.grace + HEARD <= TTL
    changed = replace(claimed("m2", f"web/{moved}/web"), specs={"web": NEW})
    assert f"retire c{2 + moved}" not in does(changed), "what serves does not make way for a new revision that does not"


def test_retiring_is_not_taken_back():
    """Nothing new is sent to what is on its way out, even if there is no reason any more."""
    a, b = managed(2, OLD, 0), managed(3, OLD, 1)
    s = snapshot(a, b, specs=[OLD])
    assert going(s) == frozenset()
    assert going(replace(s, going=frozenset({b.id}))) == {b.id}


def test_claims():
    """A machine claims what it has run for long enough while its share is not all ready, and knows when more is due."""
    pod = spec("pod", declared("a", ports=(80,)), declared("b", ports=(81,)), constraint="here")
    machines = (machine("m2", "10.0.0.2"), machine("here", "10.0.0.1"))

    ports = frozenset(map(Destination.parse, ("a.pod:80", "b.pod:81")))

    def found(*workloads, announced=ports, **fields):
        fields = {"machines": machines, "announced": announced, **fields}
        return claims(snapshot(*workloads, specs=[pod], now=1000.0, **fields))

    ready = managed(2, pod, name="a", started_at=1000.0 - CLAIM)
    late = not_ready(managed(3, pod, name="b", started_at=1003.0 - CLAIM))
    assert found(ready, late) == ({"pod/0/a"}, 3.0)
    assert found(ready) == ({"pod/0/a"}, inf), "the other one is not even there"
    assert found(ready, replace(late, started_at=100.0)) == ({"pod/0/a", "pod/0/b"}, inf)
    good = managed(3, pod, name="b", started_at=100.0)
    assert found(ready, good) == (frozenset(), inf), "what is all ready is announced"
    assert found(ready, good, announced=frozenset()) == ({"pod/0/a", "pod/0/b"}, inf), "but for some fault"
    assert found(ready, late, machines=machines[1:]) == (frozenset(), inf), "there is nobody else"
    assert found(stopped(ready), replace(late, state=RunState.RESTARTING, started_at=0.0)) == (frozenset(), inf)
    assert found(replace(ready, revision="0" * 8), late) == (frozenset(), 3.0), "the former revision serves here"
    assert found(ready, replace(late, started_at=0.0)) == ({"pod/0/a"}, inf), "its first instruction is still to come"
    assert found(ready, replace(late, started_at=4600.0)) == ({"pod/0/a", "pod/0/b"}, inf), "the clock was set back"
    elsewhere = replace(pod, constraint=parse_constraint("m2"))
    assert claims(snapshot(ready, late, specs=[elsewhere], machines=machines)) == (frozenset(), inf)


def test_progress():
    """Each container that this machine runs, with what it waits for."""
    a, b = managed(2, OLD, 0), not_ready(managed(3, NEW, 1))
    three = replace(NEW, count=3)
    found = progress(snapshot(a, b, specs=[three]))
    assert [(p.key.replica, p.state, p.ready, p.machine) for p in found] == [
        (0, "old revision serves", False, "here"),
        (1, "waiting for port 80", False, "here"),
        (2, "to be created", False, "here"),
    ]


@given(snapshots())
def test_properties(s):
    """One action per container or key; the order of facts does not matter; the last ready one of a key stays."""
    actions = rollout(s)
    assert actions == rollout(
        replace(s, workloads=s.workloads[::-1], specs=dict(reversed(s.specs.items())), machines=s.machines[::-1])
    )
    touched = [a.workload_id for a in actions if isinstance(a, Start | Retire)]
    assert len(touched) == len(set(touched))
    created = [a.key for a in actions if isinstance(a, Create)]
    assert len(created) == len(set(created))
    managed_ids = {w.id for w in s.workloads if w.revision is not None}
    assert set(touched) <= managed_ids
    assert not going(s) & {w.id for w in s.workloads if w.revision is None}
