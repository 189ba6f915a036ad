"""Who changed our table? Our own pushes and others' tables are passed over; any other hand on ours is told."""

from __future__ import annotations

import subprocess

import pytest
import trio
import trio.testing
from nsworld import World
from test_ruleset_walk import RULES

from appliance.drivers.nft import drift
from appliance.drivers.nft.client import Nft
from appliance.drivers.nft.commits import OWN
from appliance.drivers.nft.drift import RulesetWatch
from appliance.errors import RetryError
from appliance.model.network import Netns, NetnsId
from appliance.render.ruleset import REMOVE, render_workload

pytestmark = pytest.mark.system

OTHERS = "add table ip nat\nadd chain ip nat DOCKER_OUTPUT\nadd rule ip nat DOCKER_OUTPUT accept\n"
"""What Docker does in the namespaces of its user-defined networks."""


class Watched:
    """A watch on the workload's namespace; `drifts` has what it told."""

    def __init__(self, world: World, nursery: trio.Nursery, buffer: int) -> None:
        self.world = world
        self.nursery = nursery
        self.nft = Nft()
        self.drifts: list[NetnsId] = []
        self._told = trio.Event()
        self.watch = RulesetWatch(on_drift=self._drift, buffer=buffer)

    def _drift(self, netns: NetnsId) -> None:
        self.drifts.append(netns)
        self._told.set()

    async def push(self) -> None:
        """Push the rules as the appliance does."""
        await self.nft.push(self.world.path("workload"), render_workload(RULES))

    def push_while_the_loop_stands(self) -> None:
        """Push without letting the watch read meanwhile."""
        command = ["nsenter", f"--net={self.world.path('workload')}", "nft", "-f", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            OWN.add(process.pid)
            process.communicate(render_workload(RULES).encode())
        assert process.returncode == 0

    async def next_drift(self) -> NetnsId:
        """Wait until it tells of one more drift."""
        with trio.fail_after(5):
            while not self.drifts:
                await self._told.wait()
        self._told = trio.Event()
        return self.drifts.pop(0)


@pytest.fixture
def world():
    """Bare namespaces."""
    with World() as made:
        yield made


def watching(world: World, scenario, buffer: int = drift.BUFFER) -> None:
    """Play a scenario with the workload's namespace watched and its rules in place."""

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                watched = Watched(world, nursery, buffer)
                await nursery.start(watched.watch.run)
                await watched.push()
                watched.watch.add(world.netns("workload"))
                await scenario(watched)
                nursery.cancel_scope.cancel()
            watched.watch.close()

    trio.run(main)


@pytest.mark.parametrize(
    "change",
    [
        "delete table inet meshbox\n",
        "flush ruleset\n",
        "flush chain inet meshbox leaving\n",
        "insert rule inet meshbox leaving accept\n",
        "add element inet meshbox published { tcp . 22 }\n",
        "delete chain inet meshbox arriving\n",
        OTHERS + "add set inet meshbox x { type ipv4_addr ; }\n",
    ],
)
def test_any_change_of_ours_by_others_is_told(world, change):
    """Whatever nft command it was, and also where it came along with changes elsewhere."""

    async def scenario(watched: Watched) -> None:
        await trio.to_thread.run_sync(world.nft, "workload", change)
        assert await watched.next_drift() == world.netns("workload").id

    watching(world, scenario)


def test_our_own_pushes_and_tables_of_others_are_not_told(world):
    """A replace, a removal and what Docker does pass in silence: the first drift told is the one that follows."""

    async def scenario(watched: Watched) -> None:
        for _ in range(3):
            await watched.push()
        await watched.nft.push(world.path("workload"), REMOVE)
        await watched.push()
        await trio.to_thread.run_sync(world.nft, "workload", OTHERS)
        await trio.to_thread.run_sync(world.nft, "workload", "add table ip meshbox\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert watched.drifts == []
        await trio.to_thread.run_sync(world.nft, "workload", "delete table inet meshbox\n")
        await watched.next_drift()

    watching(world, scenario)


def test_a_quarrel_is_told_again_but_not_at_every_word(world):
    """Many changes in a row are told at once and then once more, a second later: repairs stay cheap."""

    async def scenario(watched: Watched) -> None:
        began = trio.current_time()
        for _ in range(5):
            await trio.to_thread.run_sync(world.nft, "workload", "insert rule inet meshbox leaving accept\n")
        await watched.next_drift()
        await watched.next_drift()
        assert trio.current_time() - began >= drift.BETWEEN[0]
        assert watched.drifts == []

    watching(world, scenario)


def test_lost_notices_count_as_drift_once(world):
    """Too many notices for the buffer: the rules are pushed anew, but that push's own flood is not told again."""

    async def scenario(watched: Watched) -> None:
        watched.push_while_the_loop_stands()
        assert await watched.next_drift() == world.netns("workload").id
        watched.push_while_the_loop_stands()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert watched.drifts == []

    watching(world, scenario, buffer=4096)


def test_a_removed_namespace_is_let_go_at_once(world):
    """A watch's socket would keep a dead namespace, and the other end of its cable, alive."""

    async def scenario(watched: Watched) -> None:
        workload = world.netns("workload").id
        assert workload in watched.watch
        world.delete("workload")
        watched.watch.remove(workload)
        watched.watch.remove(workload)
        with trio.fail_after(5):
            while world.has_link("host", "workload"):
                await trio.sleep(0.01)

    watching(world, scenario)


def test_a_namespace_whose_file_is_gone_is_let_go_without_being_told(world, monkeypatch):
    """Should nobody call `remove`, the watch finds out by itself."""
    monkeypatch.setattr(drift, "STALE", 0.05)

    async def scenario(watched: Watched) -> None:
        workload = world.netns("workload").id
        world.delete("workload")
        with trio.fail_after(5):
            while workload in watched.watch or world.has_link("host", "workload"):
                await trio.sleep(0.01)

    watching(world, scenario)


def test_only_the_namespace_that_was_meant_is_watched(world):
    """A file that leads elsewhere by now, or nowhere, is refused; adding twice is adding once."""

    async def scenario(watched: Watched) -> None:
        watched.watch.add(world.netns("workload"))
        with pytest.raises(RetryError, match="another network namespace"):
            watched.watch.add(Netns(id=world.netns("neighbour").id, path=world.path("outside")))
        with pytest.raises(RetryError, match="No such file"):
            watched.watch.add(Netns(id=world.netns("neighbour").id, path="/run/netns/mbd-nowhere"))
        assert world.netns("neighbour").id not in watched.watch

    watching(world, scenario)
