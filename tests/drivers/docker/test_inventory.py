"""Containers as facts, kept up to date. Docker is a fake; a namespace is a link to the test's own."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network

import pytest
import trio
import trio.testing
from fakedocker import FakeDocker, cid, until
from foreign import EVIL, HUGE
from together import run_again, run_together

from appliance.drivers.docker import members, workload
from appliance.drivers.docker.inventory import Inventory
from appliance.drivers.docker.types import Event, Joined, Unreadable
from appliance.drivers.netns import identity, links
from appliance.errors import RetryError
from appliance.model.facts import BoundPort, DockerNetwork, Probe, RunState
from appliance.model.names import Port, Protocol
from appliance.retry import Schedule

LABELS = {"meshbox.service": "flask", "meshbox.container": "web", "meshbox.ports": "80"}


class World:
    """An inventory on a fake Docker, with a netns directory of its own."""

    def __init__(self, directory) -> None:
        self.docker = FakeDocker()
        self.directory = directory / "netns"
        self.directory.mkdir()
        self.namespace("one")
        self.rings: list[bool] = []
        self.fresh: list[object] = []
        self.inventory = Inventory(
            self.docker,
            netns_dir=str(self.directory),
            bell=lambda *, urgent=False: self.rings.append(urgent),
            fresh_netns=self.fresh.append,
        )

    def namespace(self, name: str) -> str:
        """Let Docker make a namespace."""
        (self.directory / name).symlink_to("/proc/self/ns/net")
        return str(self.directory / name)

    @property
    def only(self):
        """The one workload."""
        (workload,) = self.inventory.workloads
        return workload


async def no_address(_path, **_limits):
    """Wait as in a namespace whose interfaces do not come."""
    await trio.sleep_forever()


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A world in which Docker runs one labelled container, c2. Namespaces show no address: they are the test's own."""
    monkeypatch.setattr("appliance.drivers.netns.addresses.wait", no_address)
    made = World(tmp_path)
    made.docker.add(2, LABELS)
    return made


def play(world: World, scene) -> None:
    """Run `scene()` once the inventory has started."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.inventory.parts)
            await scene()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_everything_is_listed_before_it_has_started(world):
    """Once run() has started, the running containers are known with namespace, address and gateway."""

    async def scene():
        assert world.inventory.connected
        assert world.only.state is RunState.RUNNING
        assert world.only.netns.id == identity.identify("/proc/self/ns/net")
        assert world.only.netns.path == str(world.directory / "one")
        assert world.only.attachments[0].gateway == IPv4Address("172.17.0.1")
        assert world.only.ports == (Port.parse(80),)
        assert [n.name for n in world.inventory.networks] == ["bridge"]
        assert world.fresh

    play(world, scene)


def test_start_event_brings_a_container(world):
    """A container that starts is inspected and joins; one without labels is no workload."""

    async def scene():
        world.docker.add(3, LABELS | {"meshbox.container": "redis"})
        world.docker.add(4, {})
        world.docker.tell("container", "start", cid(4), name="c4")
        world.docker.tell("container", "start", cid(3), name="c3", **LABELS)
        await until(lambda: len(world.inventory.workloads) == 2)
        await until(lambda: all(w.netns for w in world.inventory.workloads))
        assert len(world.inventory.workloads) == 2

    play(world, scene)


def test_events_that_change_nothing_cause_no_inspect(world):
    """A health check runs a command now and then: three events each time, for each container."""

    async def scene():
        world.docker.calls.clear()
        for action in ("exec_create: /bin/sh -c true", "exec_start: /bin/sh -c true", "exec_die", "top", "attach"):
            world.docker.tell("container", action, cid(2), **LABELS)
        world.docker.tell("container", "rename", cid(2), **LABELS)
        await until(lambda: f"inspect {cid(2)}" in world.docker.calls)
        await trio.testing.wait_all_tasks_blocked()
        assert world.docker.calls.count(f"inspect {cid(2)}") == 1

    play(world, scene)


def test_events_without_end_cause_few_inspects(world, autojump_clock):
    """Of one container: after some in a row it is inspected at most twice a second."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.inventory.parts)
            world.docker.calls.clear()
            for _ in range(1000):
                world.docker.tell("container", "rename", cid(2), **LABELS)
                await trio.sleep(0.01)
            assert 5 < world.docker.calls.count(f"inspect {cid(2)}") < 50
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_die_takes_it_out_at_once(world):
    """At `die` its addresses and namespace are gone before Docker is asked again, and the bell is urgent."""

    async def scene():
        gate = world.docker.inspect_gate[cid(2)] = trio.Event()
        world.rings.clear()
        world.docker.change(cid(2), state=RunState.EXITED, exit_code=137)
        world.docker.tell("container", "die", cid(2), exitCode="137", **LABELS)
        await until(lambda: world.only.state is RunState.EXITED)
        assert (world.only.netns, world.only.addresses, world.only.exit_code) == (None, (), 137)
        assert world.rings == [True]
        gate.set()

    play(world, scene)


@pytest.mark.parametrize("code", ["²", HUGE, "-1", "x", ""])
def test_a_label_in_place_of_the_exit_code(world, code):
    """A container's labels take the place of what Docker itself says in events; whatever they say, it has ended."""

    async def scene():
        world.docker.change(cid(2), state=RunState.EXITED)
        world.docker.inspect_gate[cid(2)] = trio.Event()
        world.docker.tell("container", "die", cid(2), **{**LABELS, "exitCode": code})
        await until(lambda: world.only.state is RunState.EXITED)
        assert world.only.exit_code is None

    play(world, scene)


def test_die_of_a_former_run_is_passed_over(world):
    """After a reconnect old events come again: a `die` from before the present start changes nothing."""

    async def scene():
        world.docker.tell("container", "die", cid(2), at=899.0, exitCode="1", **LABELS)
        inspects = len(world.docker.calls)
        await until(lambda: len(world.docker.calls) > inspects)
        assert world.only.state is RunState.RUNNING

    play(world, scene)


def test_destroy_removes_it(world):
    """A destroyed container is no workload any more."""

    async def scene():
        world.docker.there.clear()
        world.docker.tell("container", "destroy", cid(2), **LABELS)
        await until(lambda: not world.inventory.workloads)

    play(world, scene)


def test_answer_that_an_event_has_overtaken_is_dropped(world):
    """An inspect whose answer was under way while the container died is asked again, not believed."""

    async def scene():
        gate = world.docker.answer_gate[cid(2)] = trio.Event()
        world.docker.calls.clear()
        world.docker.tell("container", "health_status: healthy", cid(2), **LABELS)
        await until(lambda: world.docker.calls == [f"inspect {cid(2)}"])
        world.docker.tell("container", "die", cid(2), exitCode="0", **LABELS)
        await until(lambda: world.only.state is RunState.EXITED)
        seen = []
        world.inventory._bell = lambda *, urgent=False: seen.append(world.only.state)
        world.docker.change(cid(2), state=RunState.EXITED, exit_code=3)
        gate.set()
        await until(lambda: world.only.exit_code == 3)
        assert set(seen) == {RunState.EXITED}

    play(world, scene)


def test_answer_that_removal_has_overtaken_is_dropped(world):
    """An inspect whose answer was under way while the container was removed does not bring it back."""

    async def scene():
        gate = world.docker.answer_gate[cid(2)] = trio.Event()
        world.docker.calls.clear()
        world.docker.tell("container", "health_status: healthy", cid(2), **LABELS)
        await until(lambda: world.docker.calls == [f"inspect {cid(2)}"])
        world.docker.there.clear()
        world.docker.tell("container", "destroy", cid(2), **LABELS)
        await until(lambda: not world.inventory.workloads)
        world.rings.clear()
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert world.inventory.workloads == ()
        assert world.rings == []

    play(world, scene)


def test_docker_away_keeps_what_was_known(world, monkeypatch):
    """While Docker is away nothing is forgotten; when it is back everything is listed again, and what went is gone."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.RECONNECT", Schedule((0.01, 0.02)))

    async def scene():
        before = world.inventory.workloads
        world.docker.down = True
        world.docker.break_streams()
        await until(lambda: not world.inventory.connected)
        tries = world.inventory.counts["reconnects"]
        await until(lambda: world.inventory.counts["reconnects"] > tries + 2)
        assert world.inventory.workloads == before
        del world.docker.there[cid(2)]
        world.docker.add(3, LABELS)
        world.docker.down = False
        await until(lambda: world.inventory.connected)
        await until(lambda: [w.docker_name for w in world.inventory.workloads] == ["c3"])

    play(world, scene)


def test_reconnect_asks_for_events_since_the_last_one(world, monkeypatch):
    """No event falls between two streams: the next one begins where the last one ended."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.RECONNECT", Schedule((0.01, 0.02)))

    async def scene():
        world.docker.tell("container", "update", cid(2), at=5e9, **LABELS)
        await until(lambda: world.inventory.counts["events"] == 1)
        world.docker.break_streams()
        await until(lambda: len(world.docker.since) == 2)
        assert world.docker.since[1] == 5e9

    play(world, scene)


def test_start_waits_for_docker(world, monkeypatch):
    """Without Docker the inventory does not start, and starts as soon as it is there."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.RECONNECT", Schedule((0.01, 0.02)))
    world.docker.down = True

    async def scene():
        assert world.only.netns

    async def main():
        async with trio.open_nursery() as nursery:

            async def mend():
                await until(lambda: world.inventory.counts["reconnects"] > 2)
                world.docker.down = False

            nursery.start_soon(mend)
            await nursery.start(run_together, world.inventory.parts)
            await scene()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_blocked_inspect_does_not_stop_the_rest(world):
    """A container that Docker is still starting (inspect waits) hinders nobody else."""
    world.docker.inspect_gate[cid(3)] = trio.Event()

    async def scene():
        world.docker.add(3, LABELS)
        world.docker.tell("container", "start", cid(3), name="c3", **LABELS)
        world.docker.add(4, LABELS)
        world.docker.tell("container", "start", cid(4), name="c4", **LABELS)
        await until(lambda: any(w.docker_name == "c4" and w.netns for w in world.inventory.workloads))

    play(world, scene)


def start_under_way(world: World, number: int = 3, *, connect: bool = True) -> str:
    """Let Docker begin to start a container: created, connected, address reserved. Inspect waits for its start."""
    one = world.docker.add(number, LABELS, state=RunState.CREATED, started_at=0.0, joined=(), sandbox_key="")
    world.docker.inspect_gate[one] = trio.Event()
    world.docker.tell("container", "create", one, name=f"c{number}", image="web", **LABELS)
    world.docker.reserved.setdefault("bridge", {})[one] = IPv4Address(f"172.17.0.{number}")
    if connect:
        world.docker.tell("network", "connect", "bridge", container=one, name="bridge")
    return one


def test_container_is_published_before_its_program_runs(world):
    """At the appearance of its namespace it has address and namespace, serves nothing, and is urgent."""
    del world.docker.there[cid(2)]

    async def scene():
        one = start_under_way(world)
        await until(lambda: world.inventory.counts["events"] == 2 and world.inventory.workloads)
        world.rings.clear()
        world.fresh.clear()
        path = world.namespace("three")
        await until(lambda: world.only.addresses)
        assert f"inspect {one}" not in world.docker.calls, "it would wait for the start"
        assert world.only.state is RunState.RUNNING
        assert world.only.addresses == (IPv4Address("172.17.0.3"),)
        assert world.only.attachments[0].gateway == IPv4Address("172.17.0.1")
        assert world.only.netns.path == path
        assert (world.only.healthy, world.only.bound, world.only.started_at) == (False, frozenset(), 0.0)
        assert world.rings == [True, True], "for its rules, and for its address"
        assert world.fresh == [world.only.netns.id]
        world.docker.change(
            one,
            state=RunState.RUNNING,
            started_at=950.0,
            sandbox_key="/x/three",
            joined=(Joined(network="bridge", address=IPv4Address("172.17.0.3")),),
        )
        world.docker.inspect_gate[one].set()
        world.docker.tell("container", "start", one, name="c3", **LABELS)
        await until(lambda: world.only.started_at == 950.0)
        assert (world.only.healthy, world.only.netns.path) == (None, path)
        assert len(world.fresh) == 1

    play(world, scene)


def test_the_image_is_asked_for_when_a_container_is_created(world):
    """Long before its namespace comes; one question for its labels and one for an image that is new, then none."""
    world.docker.image_says["sha256:web"] = {"other": "label"}

    async def scene():
        for number in (3, 4):
            world.docker.calls.clear()
            one = world.docker.add(number, LABELS, state=RunState.CREATED, started_at=0.0, joined=(), sandbox_key="")
            world.docker.tell("container", "create", one, name=f"c{number}", **LABELS)
            await until(lambda one=one: any(w.id == one for w in world.inventory.workloads))
            assert world.docker.calls == [f"listed {one}"], "the image of the first container is known already"

    play(world, scene)


def test_labels_of_an_image_never_count(world):
    """Not in the list, not by its events, not at its start, and not at a restart that inspect waits for."""
    world.docker.image_says["sha256:web"] = LABELS
    forged = "come from its image and do not count"

    async def scene():
        assert forged in world.only.problem
        world.docker.inspect_gate[cid(2)] = trio.Event()
        world.docker.reserved["bridge"] = {cid(2): IPv4Address("172.17.0.2")}
        world.docker.change(cid(2), state=RunState.EXITED)
        world.docker.tell("container", "die", cid(2), exitCode="0", **LABELS)
        await until(lambda: world.only.state is RunState.EXITED)
        assert forged in world.only.problem
        world.docker.tell("network", "connect", "bridge", container=cid(2), name="bridge")
        await until(lambda: world.inventory.counts["events"] == 2)
        world.namespace("again")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (world.only.netns, world.only.ports) == (None, ())
        assert forged in world.only.problem

    play(world, scene)


def test_events_that_are_behind_do_not_matter(world, monkeypatch):
    """A namespace whose container no event has told of yet is looked up in the list, which never waits."""
    del world.docker.there[cid(2)]

    async def scene():
        one = world.docker.add(3, LABELS, state=RunState.CREATED, started_at=0.0, joined=(), sandbox_key="")
        world.docker.inspect_gate[one] = trio.Event()
        world.docker.reserved["bridge"] = {one: IPv4Address("172.17.0.3")}
        monkeypatch.setattr(world.inventory._store, "only_connecting", lambda: one)  # on a real host, its process tells
        world.namespace("three")
        await until(lambda: world.inventory.workloads and world.only.addresses == (IPv4Address("172.17.0.3"),))

    play(world, scene)


def test_network_as_new_as_its_container(world):
    """A network made together with the container is listed before its addresses are judged."""
    del world.docker.there[cid(2)]
    new = DockerNetwork(
        name="new", driver="bridge", subnets=(IPv4Network("10.9.0.0/24"),), gateways=(IPv4Address("10.9.0.1"),)
    )

    async def scene():
        one = start_under_way(world, connect=False)
        world.docker.nets["new"] = new
        world.docker.reserved["new"] = {one: IPv4Address("10.9.0.2")}
        world.docker.tell("network", "connect", "new", container=one, name="new")
        await until(lambda: world.inventory.counts["events"] == 2 and world.inventory.workloads)
        world.namespace("three")
        await until(lambda: world.only.addresses)
        assert world.only.attachments[0].network == "new"
        assert world.only.attachments[0].gateway == IPv4Address("10.9.0.1")

    play(world, scene)


def test_namespace_of_nobody_known_is_left_alone(world):
    """While two containers are on their way it is not guessed whose a namespace is; nor is it for one that is old."""
    del world.docker.there[cid(2)]

    async def scene():
        start_under_way(world, 3)
        await until(lambda: world.inventory.counts["events"] == 2)
        start_under_way(world, 4)
        await until(lambda: world.inventory.counts["events"] == 4)
        world.namespace("three")
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert [w.netns for w in world.inventory.workloads] == [None, None]

    play(world, scene)


def test_start_that_fails_is_taken_back(world):
    """When the namespace vanishes without a start, the container is looked at again and is not running."""
    del world.docker.there[cid(2)]

    async def scene():
        one = start_under_way(world)
        await until(lambda: world.inventory.counts["events"] == 2 and world.inventory.workloads)
        path = world.namespace("three")
        await until(lambda: world.only.netns)
        world.docker.change(one, state=RunState.CREATED)
        world.docker.inspect_gate[one].set()
        (world.directory / "three").unlink()
        await until(lambda: world.only.netns is None)
        await until(lambda: world.only.state is RunState.CREATED)
        assert path

    play(world, scene)


def test_start_that_fails_leaves_its_file_for_a_while(world):
    """Docker unbinds the namespace of a failed start and tells of the disconnect; the plain file stays for a minute."""
    del world.docker.there[cid(2)]

    async def scene():
        one = start_under_way(world)
        await until(lambda: world.inventory.counts["events"] == 2 and world.inventory.workloads)
        world.namespace("three")
        await until(lambda: world.only.netns)
        world.docker.inspect_gate[one].set()
        namespace = world.directory / "three"
        plain = world.directory.parent / "plain"
        plain.touch()
        plain.rename(namespace)  # in one step: no removal to be seen
        world.docker.tell("network", "disconnect", "bridge", container=one, name="bridge")
        await until(lambda: world.only.netns is None)
        await until(lambda: world.only.state is RunState.CREATED)

    play(world, scene)


def test_list_from_before_the_start_changes_nothing(world, monkeypatch):
    """A full list while a container is being started does not take its rules away again."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.FULL_LIST", 0.02)
    del world.docker.there[cid(2)]

    async def scene():
        one = start_under_way(world)
        world.docker.inspect_gate[one].set()  # answers "created" at once
        await until(lambda: world.inventory.counts["events"] == 2 and world.inventory.workloads)
        world.namespace("three")
        await until(lambda: world.only.netns)
        lists, inspects = world.inventory.counts["lists"], world.inventory.counts["inspects"]
        await until(
            lambda: world.inventory.counts["lists"] > lists + 2 and world.inventory.counts["inspects"] > inspects
        )
        assert world.only.netns is not None
        assert world.only.state is RunState.RUNNING

    play(world, scene)


def test_ports_are_forgotten_at_each_start(world):
    """A port that had a program before a restart must have one again."""
    web = frozenset({BoundPort(Protocol.TCP, 80)})

    async def scene():
        world.inventory._store.seen(cid(2), world.only.netns.id, web, frozenset())
        assert world.only.bound == web
        world.docker.tell("container", "update", cid(2), **LABELS)
        await until(lambda: world.docker.calls[-1] == f"inspect {cid(2)}")
        await trio.testing.wait_all_tasks_blocked()
        assert world.only.bound == web
        world.docker.change(cid(2), started_at=990.0)  # the same inode, as the kernel likes to do
        world.docker.tell("container", "start", cid(2), **LABELS)
        await until(lambda: world.only.started_at == 990.0)
        assert world.only.bound == frozenset()
        assert len(world.fresh) == 2

    play(world, scene)


def wanted_of(w, *ports):
    """What a plan wants to be looked up of that workload."""
    return Probe(w.id, w.netns.id, w.netns.path, w.started_at, w.addresses, ports)


def test_ports_are_looked_up_again_and_again(tmp_path):
    """A port counts while a program listens there, and again once one does; each change rings."""

    async def main():
        world = World(tmp_path)
        world.docker.nets["loop"] = DockerNetwork(name="loop", driver="bridge", subnets=(IPv4Network("127.0.0.0/8"),))
        world.docker.add(2, LABELS, joined=(Joined(network="loop", address=IPv4Address("127.0.0.1")),))
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.inventory.parts)
            await trio.testing.wait_all_tasks_blocked()
            with trio.socket.socket() as sock:
                await sock.bind(("127.0.0.1", 0))
                port = sock.getsockname()[1]
                world.inventory.probe(frozenset({wanted_of(world.only, (Protocol.TCP, port))}))
                await trio.testing.wait_all_tasks_blocked()
                assert world.only.bound == frozenset()
                rings = len(world.rings)
                sock.listen()
                await until(lambda: world.only.bound == {BoundPort(Protocol.TCP, port)})
                assert len(world.rings) > rings
            world.inventory.refused(IPv4Address("127.0.0.1"))
            await until(lambda: world.only.bound == frozenset())
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_ports_of_an_older_plan_are_not_looked_up(world, monkeypatch):
    """The plan was made before the container died."""
    asked = []

    async def scene():
        wanted = wanted_of(world.only, (Protocol.TCP, 80))
        world.inventory.probe(frozenset({wanted}))
        assert asked[-1] == {wanted}
        world.docker.change(cid(2), state=RunState.EXITED)
        world.docker.tell("container", "die", cid(2), exitCode="0", **LABELS)
        await until(lambda: world.only.netns is None)
        world.inventory.probe(frozenset({wanted}))
        assert asked[-1] == frozenset()

    monkeypatch.setattr("appliance.drivers.docker.probe.Prober.want", lambda _, wanted: asked.append(wanted))
    play(world, scene)


def test_sharer_follows_its_owner(world):
    """A container that shares another's network has that one's namespace and address, and loses them with it."""
    world.docker.add(3, LABELS, network_mode=f"container:{cid(2)}", joined=(), sandbox_key="", started_at=901.0)

    async def scene():
        sharer = next(w for w in world.inventory.workloads if w.docker_name == "c3")
        assert sharer.problem is None
        assert sharer.addresses == (IPv4Address("172.17.0.2"),)
        assert sharer.netns == next(w for w in world.inventory.workloads if w.docker_name == "c2").netns
        world.docker.change(cid(2), state=RunState.EXITED)
        world.docker.tell("container", "die", cid(2), exitCode="0", **LABELS)
        await until(lambda: any("does not run" in (w.problem or "") for w in world.inventory.workloads))

    play(world, scene)


def test_failing_inspect_is_reported_once_and_tried_again(world, monkeypatch):
    """A container that cannot be looked at keeps its entry; the next full list tries again."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.FULL_LIST", 0.02)

    async def scene():
        world.docker.refuse["inspect"] = "internal error"
        world.docker.change(cid(2), healthy=True)
        await until(lambda: world.docker.calls.count(f"inspect {cid(2)}") > 3)
        assert world.only.netns
        assert ("inspect", cid(2)) in world.inventory._faults.current
        del world.docker.refuse["inspect"]
        await until(lambda: world.only.healthy)
        assert not world.inventory._faults.current

    play(world, scene)


def raising(*_, **__):
    """Fail as nobody has foreseen."""
    raise ZeroDivisionError(EVIL)


@pytest.mark.parametrize("where", ["from_list", "from_inspect"])
def test_any_error_is_that_containers_problem(world, monkeypatch, where):
    """One container at which the appliance fails in any way is named, counted and passed over; the others count."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.FULL_LIST", 0.02)
    world.docker.add(3, LABELS | {"evil": "yes"}, sandbox_key="/nowhere")
    real = getattr(workload, where)

    def fails(seen, *args, **kwargs):
        listed = getattr(seen, "listed", seen)
        return raising() if "evil" in listed.labels else real(seen, *args, **kwargs)

    monkeypatch.setattr(workload, where, fails)

    async def scene():
        assert cid(2) in {w.id for w in world.inventory.workloads}
        world.docker.tell("container", "start", cid(3), **LABELS, evil="yes")
        await until(lambda: world.inventory.counts["unreadable"] > 2)
        faults = world.inventory._faults
        await until(lambda: any(cid(3) in key for key in faults.list()))
        assert all(str(fault.cause).isprintable() for fault in faults.current.values())
        world.docker.change(cid(2), healthy=True)
        world.docker.tell("container", "health_status: healthy", cid(2), **LABELS)
        await until(lambda: any(w.healthy for w in world.inventory.workloads))
        monkeypatch.setattr(workload, where, real)
        await until(lambda: not faults.current)
        assert {w.id for w in world.inventory.workloads} == {cid(2), cid(3)}

    play(world, scene)


def test_any_error_at_an_event_is_that_events_problem(world, monkeypatch):
    """The stream goes on with the next one."""

    async def scene():
        monkeypatch.setattr(world.inventory._store, "died", raising)
        world.docker.tell("container", "die", cid(2), **LABELS)
        await until(lambda: world.inventory.counts["unreadable"] == 1)
        monkeypatch.undo()
        world.docker.add(4, LABELS, sandbox_key="/nowhere")
        world.docker.tell("container", "start", cid(4), **LABELS)
        await until(lambda: len(world.inventory.workloads) == 2)
        assert world.inventory.counts["reconnects"] == 0

    play(world, scene)


@pytest.mark.parametrize("known", [cid(2), ""])
def test_an_entry_that_cannot_be_read_is_not_missing(world, monkeypatch, known):
    """What was known of a container or network stays while Docker's list of them cannot be read in full."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.FULL_LIST", 0.02)

    async def nothing_readable(kind, name):
        world.docker.complain(kind, Unreadable(id=name, cause="odd"))
        return ()

    async def scene():
        networks = world.inventory.networks
        name = "bridge" if known else ""
        monkeypatch.setattr(world.docker, "containers", lambda: nothing_readable("container", known))
        monkeypatch.setattr(world.docker, "networks", lambda: nothing_readable("network", name))
        lists = world.inventory.counts["lists"]
        await until(lambda: world.inventory.counts["lists"] > lists + 2)
        assert world.only.netns
        assert world.inventory.networks == networks
        assert set(world.inventory._faults.list()) == {str(("container", known)), str(("network", name))}
        monkeypatch.undo()
        monkeypatch.setattr("appliance.drivers.docker.inventory.FULL_LIST", 0.02)
        await until(lambda: not world.inventory._faults.current)

    play(world, scene)


def test_a_fault_is_over_even_if_a_list_fails_in_between(world, monkeypatch):
    """What a list that fails leaves open, the next one settles: an entry that can be read again is no fault."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.FULL_LIST", 0.02)
    containers, networks = world.docker.containers, world.docker.networks

    async def readable_but_for(kind, name):
        world.docker.complain(kind, Unreadable(id=name, cause="odd"))
        return await (containers if kind == "container" else networks)()

    async def fail():
        raise RetryError("Docker is away")

    async def scene():
        faults = world.inventory._faults
        monkeypatch.setattr(world.docker, "containers", lambda: readable_but_for("container", cid(3)))
        monkeypatch.setattr(world.docker, "networks", lambda: readable_but_for("network", "odd"))
        await until(lambda: {("container", cid(3)), ("network", "odd")} <= faults.current.keys())
        monkeypatch.setattr(world.docker, "containers", fail)
        await until(lambda: "docker list" in faults.current)
        monkeypatch.setattr(world.docker, "networks", fail)
        failed = faults.total
        await until(lambda: faults.total > failed + 2)
        monkeypatch.setattr(world.docker, "containers", containers)
        monkeypatch.setattr(world.docker, "networks", networks)
        await until(lambda: not faults.current)

    play(world, scene)


def test_any_error_at_a_start_is_that_starts_problem(world, monkeypatch):
    """It is named until its namespace is gone; what Docker says later counts as ever."""
    monkeypatch.setattr("appliance.drivers.docker.inventory.FULL_LIST", 0.02)
    monkeypatch.setattr("appliance.drivers.netns.owner.find_owner", raising)

    async def scene():
        path = world.namespace("three")
        await until(lambda: any(path in key for key in world.inventory._faults.list()))
        (world.directory / "three").unlink()
        world.docker.add(3, LABELS, sandbox_key="/nowhere")
        world.docker.tell("container", "start", cid(3), **LABELS)
        await until(lambda: len(world.inventory.workloads) == 2)
        await until(lambda: not any(path in key for key in world.inventory._faults.list()))

    play(world, scene)


def test_catching_up_takes_what_the_stream_has_not_brought(world):
    """Events up to now, by a question of its own, from the last one that was taken on; once more is no harm."""

    async def scene():
        late = Event(kind="container", action="destroy", id=cid(2), time=time.time())
        world.docker.told.append(late)  # the stream has not brought it
        await world.inventory.catch_up()
        assert world.inventory.workloads == ()
        assert "events until" in world.docker.calls
        await world.inventory.catch_up()

    play(world, scene)


def test_a_silent_stream_is_opened_again_from_where_it_was(world):
    """A quiet host sends no events, nor does a connection that is stuck; nothing is listed for it, and none missed."""

    async def scene():
        world.docker.clock = 2e9
        world.docker.tell("container", "start", cid(2))
        await until(lambda: world.inventory.counts["events"] == 1)
        lists, reconnects = world.inventory.counts["lists"], world.inventory.counts["reconnects"]
        world.docker.fall_silent()
        await until(lambda: len(world.docker.since) == 2)
        assert world.docker.clock < world.docker.since[-1] < world.docker.clock + 1e-3
        world.docker.tell("container", "destroy", cid(2))
        await until(lambda: not world.inventory.workloads)
        assert world.inventory.connected
        assert (world.inventory.counts["lists"], world.inventory.counts["reconnects"]) == (lists, reconnects)

    play(world, scene)


def test_containers_without_labels_are_members(world, monkeypatch):
    """From the first list on, by a start, and until they end; members that cannot be listed keep what was known."""
    ports = {"one": frozenset({"veth9"})}

    async def wait_ports(path, number, *, timeout):  # noqa: ASYNC109 — as the real one
        await trio.lowlevel.checkpoint()
        return ports["one"]

    monkeypatch.setattr(links, "wait_ports", wait_ports)
    monkeypatch.setattr(members, "_are_there", lambda _: True)
    world.docker.add(7, {})
    world.docker.reserved["bridge"] = {cid(7): IPv4Address("172.17.0.7")}

    def ids():
        return {one.id for one in world.inventory.members}

    async def scene():
        await until(lambda: ids() == {cid(2), cid(7)})
        assert [w.id for w in world.inventory.workloads] == [cid(2)]
        world.docker.add(8, {})
        world.docker.tell("container", "start", cid(8), name="c8")
        await until(lambda: cid(8) in ids())
        world.docker.refuse["members"] = "internal error"
        await world.inventory._list()
        assert len(ids()) == 3
        del world.docker.refuse["members"]
        world.docker.tell("container", "die", cid(8), exitCode="0")
        await until(lambda: cid(8) not in ids())

    play(world, scene)


def test_no_part_takes_anything_with_it_that_was_known(world):
    """Each in turn fails and is run again: what was known stays, and what comes later is seen."""

    async def main():
        scopes = {}
        async with trio.open_nursery() as nursery:
            for part in world.inventory.parts:
                await nursery.start(run_again, part, scopes)
            known = world.only
            assert known.netns
            for name in list(scopes):
                for _ in range(2):
                    scopes[name].cancel()
                    await trio.sleep(0.02)
                    assert world.only == known, name
            world.docker.add(3, LABELS)
            world.docker.tell("container", "start", cid(3), **LABELS)
            await until(lambda: [bool(w.netns) for w in world.inventory.workloads] == [True, True])
            world.docker.tell("container", "destroy", cid(3))
            await until(lambda: len(world.inventory.workloads) == 1)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_inspects_that_were_cut_short_are_made_again(world):
    """As when the task that makes them is started again."""
    world.docker.inspect_gate[cid(3)] = trio.Event()

    async def main():
        scopes = {}
        async with trio.open_nursery() as nursery:
            for part in world.inventory.parts:
                await nursery.start(run_again, part, scopes)
            world.docker.add(3, LABELS)
            world.docker.tell("container", "start", cid(3), **LABELS)
            await until(lambda: f"inspect {cid(3)}" in world.docker.calls)
            scopes["docker inspects"].cancel()
            world.docker.inspect_gate.clear()
            await until(lambda: [bool(w.netns) for w in world.inventory.workloads] == [True, True])
            nursery.cancel_scope.cancel()

    trio.run(main)
