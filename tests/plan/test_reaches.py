"""What containers reach, one snapshot after another, and what the host needs for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.model.facts import RunState
from appliance.model.names import Name
from appliance.plan.containers import MeshContainers
from appliance.plan.policy import reach
from appliance.plan.reaches import Reaches, demand
from appliance.plan.turns import at_once
from appliance.plan.visitors import visitor_groups
from tests.plan.cases import container, declared, dest, snapshot, snapshots, spec, stopped

APPLE = container(2, "apple.orange", ports=(80, "80/udp"))
CLIENT = container(3, "flask.flask", to=("apple.orange:80/tcp",))


def reaches(memory, *workloads, remote=(), **fields):
    """The reaches of containers, by their Docker ids."""
    s = snapshot(*workloads, **fields)
    return at_once(memory.of(s, MeshContainers().read(s), frozenset(map(dest, remote))))


def needed(*workloads, remote=(), **fields):
    """The demand of a host."""
    s, memory = snapshot(*workloads, **fields), Reaches()
    found = reaches(memory, *workloads, remote=remote, **fields)
    known = memory.catalogue
    return at_once(demand(MeshContainers().read(s), found, visitor_groups(s, known), known))


def test_reach_is_the_same_object_while_nothing_concerns_it():
    """A name that comes or changes is computed for those only that may reach it."""
    memory = Reaches()
    other = container(4, "x.y", to=("b.c",))
    before = reaches(memory, APPLE, CLIENT, other)
    after = reaches(memory, APPLE, CLIENT, other, remote=["apple.orange:80", "b.c:1"])
    assert after[CLIENT.id] is before[CLIENT.id]
    assert after[APPLE.id] is before[APPLE.id]
    assert after[other.id].destinations == {dest("b.c:1")}


def test_what_goes_is_reached_no_longer():
    """A destination that nobody declares any more leaves the reach; the name in connect_to stays."""
    memory = Reaches()
    reaches(memory, APPLE, CLIENT)
    found = reaches(memory, CLIENT)[CLIENT.id]
    assert found.destinations == set()
    assert Name.parse("apple.orange") in found.names


@given(st.lists(snapshots(), min_size=2, max_size=3))
def test_memory_changes_nothing(sequence):
    """Whatever was seen before, each container's reach is what the rule says without memory."""
    memory = Reaches()
    for s in sequence:
        containers = MeshContainers().read(s)
        remote = frozenset(e.destination for e in s.endpoints)
        found = at_once(memory.of(s, containers, remote))
        assert found == {
            c.workload.id: reach(memory.catalogue, c.declared.name.service, c.declared.connect_to) for c in containers
        }


def test_demand():
    """Every known name needs an address; only what is offered or reached here needs a port."""
    found = needed(APPLE, CLIENT, specs=[spec("far", declared("far", ports=(1,)))], remote=["other.far:1"])
    assert found.names == set(map(Name.parse, ("apple.orange", "flask.flask", "far.far", "other.far")))
    assert found.destinations == found.offered == {dest("apple.orange:80"), dest("apple.orange:80/udp")}
    assert found.closed == set()


def test_only_ended_containers_close_a_destination():
    """What a running container also reaches or offers stays open."""
    ended = stopped(APPLE, RunState.RESTARTING)
    assert needed(ended, CLIENT).closed == {dest("apple.orange:80/udp")}
    assert needed(ended).closed == needed(ended).destinations == {dest("apple.orange:80"), dest("apple.orange:80/udp")}
