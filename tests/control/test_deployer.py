"""What is done to containers, in which order, and what is left when it fails. Docker is a fake."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
import trio
import trio.testing
from fakedocker import BRIDGE, FakeDocker, until
from structlog.testing import capture_logs

from appliance.control.deployer import PEERS_SETTLE, SETTLE, Deployer
from appliance.drivers.docker.create import container_labels, docker_name
from appliance.errors import RetryError
from appliance.model.facts import RunState
from appliance.model.names import Port
from appliance.model.privileges import Privileges
from appliance.model.rollout import Create, ReplicaKey, Retire, Start
from appliance.model.spec import Container

KEY = ReplicaKey(service="flask", replica=0, container="web")
WEB = Container(name="web", image="web", ports=(Port.parse(80),))
CREATE = Create(key=KEY, container=WEB, revision="0badcafe")
NAME = docker_name(KEY, "0badcafe")


class World:
    """A deployer, the fake Docker under it, and what it told others."""

    def __init__(self, settle: float) -> None:
        self.docker = FakeDocker()
        self.rings: list[float] = []
        self.pairs: dict[IPv4Address, int] = {}
        self.deployer = Deployer(
            self.docker,
            network="meshbox",
            bell=lambda *, urgent=False: self.rings.append(trio.current_time()),
            pairs_to=self._pairs_to,
            drain=10.0,
            settle=settle,
            node="here",
        )

    def limit(self, allows: Privileges, links: dict[str, str]) -> None:
        """Allow only this much, on a host with these symbolic links and a broken one."""

        async def follow(path: str) -> str:
            await trio.lowlevel.checkpoint()
            if path.endswith("broken"):
                raise OSError(errno.ELOOP, "Too many levels of symbolic links", path)
            return links.get(path, path)

        self.deployer._allows, self.deployer._follow = allows, follow

    async def _pairs_to(self, address: IPv4Address) -> int:
        await trio.lowlevel.checkpoint()
        return self.pairs.get(address, 0)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        await until(lambda: not self.deployer.busy, seconds=1000)

    @property
    def deeds(self) -> list[str]:
        """What changed something in Docker, in order."""
        changing = ("create", "start", "stop", "remove", "pull", "ensure_network", "remove_network")
        return [call.split()[0] for call in self.docker.calls if call.split()[0] in changing]

    def ours(self, *, state: RunState, started_at: float) -> str:
        """Put a container of CREATE's name there."""
        one = self.docker.add(7, container_labels(KEY, WEB, "0badcafe"), state=state, started_at=started_at)
        there = self.docker.there[one]
        self.docker.there[one] = replace(there, listed=replace(there.listed, docker_name=NAME))
        return one


def play(scene, settle: float = SETTLE) -> World:
    """Run `scene(world)` beside a running deployer, on a clock that jumps to whatever is waited for."""
    world = World(settle)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(world.deployer.run)
            await scene(world)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


def test_create_makes_network_container_and_starts_it():
    """A missing container is created on our network and started; afterwards there is no progress to tell of."""

    async def scene(world):
        world.deployer.submit([CREATE])
        assert world.deployer.busy == {KEY}
        await world.idle()

    with capture_logs() as lines:
        world = play(scene)
    assert not [line for line in lines if line["log_level"] == "warning"]
    assert world.deeds == ["ensure_network", "create", "start"]
    (one,) = world.docker.there.values()
    assert (one.listed.docker_name, one.listed.state) == (NAME, RunState.RUNNING)
    assert one.listed.labels["meshbox.revision"] == "0badcafe"
    assert not world.deployer.progress
    assert world.rings


def test_network_of_others_is_told_of_once():
    """It is used as it is; the log has one line with the remedy, whatever is created there."""
    other = replace(CREATE, key=replace(KEY, replica=1))

    async def scene(world):
        world.docker.nets["meshbox"] = replace(BRIDGE, name="meshbox")
        world.deployer.submit([CREATE, other])
        await world.idle()

    with capture_logs() as lines:
        world = play(scene)
    assert len(world.docker.there) == 2
    (line,) = (line for line in lines if line["log_level"] == "warning")
    assert '"meshbox"' in line["event"]
    assert "docker network rm meshbox" in line["remedy"]


def test_one_action_at_a_time_for_each_key():
    """What is under way for a key is not begun again, while other keys go on beside it."""
    other = replace(CREATE, key=replace(KEY, replica=1))

    async def scene(world):
        world.deployer.submit([CREATE, CREATE])
        world.deployer.submit([CREATE, other])
        await world.idle()

    world = play(scene)
    assert world.deeds.count("create") == 2
    assert len(world.docker.there) == 2


def test_absent_image_is_pulled_with_progress():
    """An image that is not here is pulled first, and the progress says how far that is."""
    action = replace(CREATE, container=replace(WEB, image="remote/web:2"))
    seen = []

    async def scene(world):
        world.deployer.submit([action])
        await until(lambda: "pull remote/web:2" in world.docker.calls)
        seen.append(world.deployer.progress[KEY])
        await world.idle()

    world = play(scene)
    assert world.deeds == ["pull", "ensure_network", "create", "start"]
    assert (seen[0].state, seen[0].failed, seen[0].machine) == ("pulling 40 %", False, "here")


def test_failure_is_told_and_tried_again_more_and_more_seldom():
    """An image that cannot be had fails in Docker's words; each attempt waits twice as long, till the bell rings."""
    action = replace(CREATE, container=replace(WEB, image="nonsense:1"))
    attempts = []

    async def scene(world):
        for _ in range(4):
            world.deployer.submit([action])
            attempts.append(trio.current_time())
            await world.idle()
            told = world.deployer.progress[KEY]
            assert told.failed
            assert 'image "nonsense:1" not found here and not pulled: manifest unknown' in told.state
            world.deployer.submit([action])
            assert not world.deployer.busy, "a failed action waits for its back-off"
            rings = len(world.rings)
            await until(lambda rings=rings: len(world.rings) > rings, seconds=100)

    world = play(scene)
    pauses = [b - a - 1.0 for a, b in pairwise(attempts)]  # the fake's pull takes 1 s
    assert pauses == pytest.approx([1, 2, 4], abs=0.1)
    assert world.deployer.counts["failed"] == 4
    assert not world.docker.there
    assert "meshbox" not in world.docker.nets


def test_images_are_pulled_before_a_deploy():
    """Those that are here are not pulled; the rest tell how far they are; the first that cannot be had is the last."""
    told = []

    async def scene(world):
        with pytest.raises(RetryError, match="manifest unknown"):
            await world.deployer.pull(["web", "remote/a:1", "nonsense:1", "remote/b:1"], lambda *row: told.append(row))

    world = play(scene)
    assert world.deeds == ["pull", "pull"]
    assert world.docker.images == {"web", "remote/a:1"}
    states = ["pulling", "pulling 40 %", "pulled"]
    assert told == [*(("remote/a:1", s) for s in states), *(("nonsense:1", s) for s in states[:2])]


def test_mended_spec_is_tried_at_once():
    """A back-off is about one revision: a new one does not wait, and success clears the failure."""
    broken = replace(CREATE, container=replace(WEB, image="nonsense:1"))

    async def scene(world):
        world.deployer.submit([broken])
        await world.idle()
        world.deployer.submit([replace(CREATE, revision="11111111")])
        assert world.deployer.busy
        await world.idle()

    assert not play(scene).deployer.progress


def test_failure_nobody_asks_about_is_forgotten():
    """Once the spec is removed its failure is not shown any more."""

    async def scene(world):
        world.deployer.submit([replace(CREATE, container=replace(WEB, image="nonsense:1"))])
        await world.idle()
        assert world.deployer.progress
        world.deployer.submit([])

    assert not play(scene).deployer.progress


def test_failure_during_a_pass_is_told_until_the_next_one():
    """A pass plans nothing for what was under way when it began; the failure it ends in by then is not forgotten."""

    async def scene(world):
        world.deployer.submit([replace(CREATE, container=replace(WEB, image="nonsense:1"))])
        busy = world.deployer.busy
        await world.idle()
        world.deployer.submit([], unplanned=busy)

    (progress,) = play(scene).deployer.progress.values()
    assert progress.failed


def test_half_made_container_is_replaced():
    """After a crash between create and start the name is taken by a container that never ran: it is made anew."""

    async def scene(world):
        world.half = world.ours(state=RunState.CREATED, started_at=0.0)
        world.deployer.submit([CREATE])
        await world.idle()

    world = play(scene)
    (one,) = world.docker.there.values()
    assert one.listed.id != world.half
    assert one.listed.state is RunState.RUNNING
    assert not world.deployer.progress


def test_container_that_ran_is_adopted():
    """A container of that name, key and revision that has run is started as it is: its data stay."""

    async def scene(world):
        world.former = world.ours(state=RunState.EXITED, started_at=5.0)
        world.deployer.submit([CREATE])
        await world.idle()

    world = play(scene)
    (one,) = world.docker.there.values()
    assert (one.listed.id, one.listed.state) == (world.former, RunState.RUNNING)


def test_foreign_container_of_that_name_is_left_alone():
    """Something else that has the name is not touched; the failure says what to do."""

    async def scene(world):
        one = world.ours(state=RunState.RUNNING, started_at=5.0)
        there = world.docker.there[one]
        world.docker.there[one] = replace(there, listed=replace(there.listed, labels={}))
        world.deployer.submit([CREATE])
        await world.idle()

    world = play(scene)
    assert "remove or rename it" in world.deployer.progress[KEY].state
    assert "remove" not in world.deeds


def test_start_that_does_not_last_is_slowed_down():
    """A container that is to be started again and again waits longer each time."""

    async def scene(world):
        one = world.ours(state=RunState.EXITED, started_at=5.0)
        times = []
        for _ in range(3):
            world.docker.change(one, state=RunState.EXITED)
            await until(
                lambda: world.deployer.submit([Start(key=KEY, workload_id=one)]) or world.deployer.busy, seconds=100
            )
            times.append(trio.current_time())
            await world.idle()
        assert [b - a for a, b in pairwise(times)] == pytest.approx([1, 2], abs=0.1)

    assert play(scene).deployer.counts["started"] == 3


def test_container_of_a_removed_network_is_removed():
    """A container whose network is gone can never start: it is removed, so that the next pass creates it again."""

    async def scene(world):
        one = world.ours(state=RunState.EXITED, started_at=5.0)
        del world.docker.nets["bridge"]
        world.deployer.submit([Start(key=KEY, workload_id=one)])
        await world.idle()

    assert not play(scene).docker.there


def test_retire_drains_then_stops_and_removes():
    """A retired container is stopped only when the last connection to it has ended."""

    async def scene(world):
        one = world.ours(state=RunState.RUNNING, started_at=5.0)
        world.pairs[IPv4Address("172.17.0.7")] = 2
        world.deployer.submit([Retire(key=KEY, workload_id=one, reason="a new revision takes its place")])
        await trio.sleep(3)
        assert world.deployer.progress[KEY].state == "draining 2 connections"
        assert world.deeds == []
        world.pairs.clear()
        await world.idle()
        assert trio.current_time() < 5

    world = play(scene)
    assert world.deeds == ["stop", "remove"]
    assert not world.docker.there


def test_retire_does_not_wait_for_ever():
    """Connections that stay are cut off when the drain time is over."""

    async def scene(world):
        one = world.ours(state=RunState.RUNNING, started_at=5.0)
        world.pairs[IPv4Address("172.17.0.7")] = 1
        world.deployer.submit([Retire(key=KEY, workload_id=one, reason="")])
        await world.idle()
        assert 10 <= trio.current_time() < 11

    assert not play(scene).docker.there


@pytest.mark.parametrize("drain", [4.0, 0.0])
def test_retire_in_less_time_than_usual(drain):
    """What must be gone sooner has its connections cut off sooner; never later than usual."""

    async def scene(world):
        one = world.ours(state=RunState.RUNNING, started_at=5.0)
        world.pairs[IPv4Address("172.17.0.7")] = 1
        world.deployer.submit([Retire(key=KEY, workload_id=one, reason="", drain=drain)])
        await world.idle()
        assert drain <= trio.current_time() < drain + 1

    assert not play(scene).docker.there


def test_retire_says_what_is_on_its_way_and_kills_sooner_where_it_must():
    """While it drains it counts as going; its program has the stop timeout, or less where that was asked for."""

    async def scene(world):
        one = world.ours(state=RunState.RUNNING, started_at=5.0)
        world.pairs[IPv4Address("172.17.0.7")] = 1
        world.deployer.submit([Retire(key=KEY, workload_id=one, reason="", grace=3.0)])
        await trio.sleep(1)
        assert world.deployer.going == {one}
        await world.idle()
        assert world.deployer.going == frozenset()

    assert play(scene).docker.graces == [3.0]


def test_retire_waits_until_other_machines_have_heard():
    """With peers, a container without connections stays for as long as some may still be on their way to it."""

    async def scene(world):
        one = world.ours(state=RunState.RUNNING, started_at=5.0)
        world.deployer.submit([Retire(key=KEY, workload_id=one, reason="")])
        await world.idle()
        assert trio.current_time() >= PEERS_SETTLE

    assert not play(scene, settle=PEERS_SETTLE).docker.there


def test_retire_leaves_foreign_containers_alone():
    """What meshbox did not make is never removed, whatever asks for it."""

    async def scene(world):
        one = world.docker.add(7, {"meshbox.service": "flask", "meshbox.container": "web"})
        world.deployer.submit([Retire(key=KEY, workload_id=one, reason="")])
        await world.idle()

    world = play(scene)
    assert world.deployer.progress[KEY].failed
    assert world.docker.there


def test_retire_of_what_is_gone_is_done():
    """A container that somebody else removed needs no retiring."""

    async def scene(world):
        world.deployer.submit([Retire(key=KEY, workload_id="f" * 64, reason="")])
        await world.idle()

    assert not play(scene).deployer.progress


def test_tidy_removes_the_network_only_when_idle_and_unused():
    """Our network goes when no container is on it and nothing is under way."""

    async def scene(world):
        world.deployer.submit([CREATE])
        assert not await world.deployer.tidy()
        await world.idle()
        assert not await world.deployer.tidy()
        world.docker.there.clear()
        assert await world.deployer.tidy()

    assert "meshbox" not in play(scene).docker.nets


def test_an_error_that_nobody_has_foreseen_is_that_containers_problem():
    """It is told with its traceback and tried again; another container is deployed meanwhile."""
    other = replace(CREATE, key=replace(KEY, replica=1))

    async def scene(world):
        create, world.docker.create = world.docker.create, broken
        world.deployer.submit([CREATE])
        await world.idle()
        assert world.deployer.progress[KEY].state == "KeyError: 'what'"
        world.docker.create = create
        world.deployer.submit([CREATE, other])
        await world.idle()
        await trio.sleep(10)
        world.deployer.submit([CREATE])
        await world.idle()

    async def broken(*_):
        raise KeyError("what")

    with capture_logs() as lines:
        world = play(scene)
    assert len(world.docker.there) == 2
    assert [isinstance(line["exc_info"], KeyError) for line in lines if line["log_level"] == "warning"] == [True]


def test_what_was_cut_short_is_asked_for_again():
    """A deployer that is run again rings, and has nothing under way."""
    world = World(SETTLE)

    async def main() -> None:
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as nursery:
                await nursery.start(world.deployer.run)
                world.deployer.submit([replace(CREATE, container=replace(WEB, image="remote/web"))])
        assert not world.deployer.busy
        world.rings.clear()
        async with trio.open_nursery() as nursery:
            await nursery.start(world.deployer.run)
            assert world.rings
            world.deployer.submit([CREATE])
            await world.idle()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert world.deeds[-2:] == ["create", "start"]


@pytest.mark.parametrize(
    ("volume", "mounted"),
    [("/data/in:/x", "/data/in:/x"), ("/data/link:/x:ro", "/data/real:/x:ro"), ("cache:/x", "cache:/x")],
)
def test_host_paths_are_mounted_where_they_really_lead(volume, mounted):
    """Docker is told the path behind the links, so that nobody can lead it elsewhere meanwhile."""

    async def scene(world):
        world.limit(Privileges(paths=frozenset({"/data"})), {"/data/link": "/data/real"})
        world.deployer.submit([replace(CREATE, container=replace(WEB, volumes=(volume,)))])
        await world.idle()

    world = play(scene)
    (body,) = world.docker.bodies
    assert body["HostConfig"]["Binds"] == [mounted]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"volumes": ("/etc:/x",)}, "/etc"),
        ({"volumes": ("/data/../etc:/x",)}, "/data/../etc"),
        ({"volumes": ("/data/link:/x",)}, "/etc"),
        ({"cap_add": ("SYS_ADMIN",)}, "SYS_ADMIN"),
    ],
    ids=["path", "upwards", "link", "capability"],
)
def test_what_this_machine_does_not_allow_is_not_created(asked, named):
    """Whatever was planned, and however the spec came here: the machine has the last word, says it and counts it."""

    async def scene(world):
        world.limit(Privileges(paths=frozenset({"/data"})), {"/data/link": "/etc"})
        world.deployer.submit([replace(CREATE, container=replace(WEB, **asked))])
        await until(lambda: not world.deployer.busy)
        assert f"this machine does not allow {named}:" in world.deployer.progress[KEY].state

    world = play(scene)
    assert world.deeds == []
    assert world.deployer.counts["refused"] == 1


def test_links_do_not_matter_where_all_is_allowed():
    """A path is then mounted as it is written."""

    async def scene(world):
        world.limit(Privileges(paths=frozenset({"/"})), {"/data/link": "/etc"})
        world.deployer.submit([replace(CREATE, container=replace(WEB, volumes=("/data/link:/x",)))])
        await world.idle()

    (body,) = play(scene).docker.bodies
    assert body["HostConfig"]["Binds"] == ["/data/link:/x"]


def test_a_path_that_cannot_be_followed():
    """That is no permission."""

    async def scene(world):
        world.limit(Privileges(paths=frozenset({"/data"})), {})
        world.deployer.submit([replace(CREATE, container=replace(WEB, volumes=("/data/broken:/x",)))])
        await until(lambda: not world.deployer.busy)
        assert "cannot find out where host paths lead: /data/broken: Too many" in world.deployer.progress[KEY].state

    assert play(scene).deeds == []
