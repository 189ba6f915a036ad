"""libnftables in its helper process: a namespace of the test's own is the host's, from where it enters others."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import trio
import trio.testing
from nsworld import World
from test_ruleset_walk import GUARD, RULES

from appliance.drivers.nft import features, helper
from appliance.drivers.nft.client import Nft
from appliance.drivers.nft.drift import RulesetWatch
from appliance.drivers.nft.helper import NftHelper
from appliance.errors import HostError, RetryError
from appliance.model.names import Protocol
from appliance.model.network import HostRuleset, NetnsId, Route
from appliance.render.ruleset import REMOVE, change_host, change_workload, render_host, render_workload
from appliance.retry import Schedule

pytestmark = pytest.mark.system

MORE = replace(
    RULES,
    routes=RULES.routes | {Route(vip=IPv4Address("241.0.0.99"), port=80, protocol=Protocol.TCP, proxy_port=20003)},
)

LONG = replace(
    RULES,
    routes=RULES.routes
    | {
        Route(vip=IPv4Address("241.1.0.0") + number, port=80, protocol=Protocol.TCP, proxy_port=21000 + number)
        for number in range(400)
    },
)
"""More than the helper is given at once."""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Bare namespaces; the helper starts in the one called `host`."""
    with World() as made:
        wrapper = tmp_path / "python"
        wrapper.write_text(f'#!/bin/sh\nexec nsenter --net={made.path("host")} {sys.executable} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setattr(helper, "HELPER", (str(wrapper), *helper.HELPER[1:]))
        monkeypatch.setattr(helper, "RESTART", Schedule((0.01,)))
        yield made


def helped(scenario, timeout: float = 10.0, idle: float = 30.0) -> None:
    """Play a scenario with a helper running."""

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                host = NftHelper(timeout=timeout, idle=idle)
                await nursery.start(host.run)
                await scenario(host)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_commands_work_on_the_host_and_answer_what_they_print(world):
    """A replace, a delta, a listing and the removal of the host's table, in one helper."""
    more = HostRuleset(
        proxy_ports=GUARD.proxy_ports,
        dns_port=53,
        workloads=GUARD.workloads | {IPv4Address("172.30.0.9")},
        dns_addresses=GUARD.dns_addresses,
        subnets=GUARD.subnets,
        listening=frozenset(),
    )

    async def scenario(host: NftHelper) -> None:
        await host.command(render_host(GUARD))
        await host.command(render_host(GUARD))
        delta = change_host(GUARD, more)
        assert "table inet meshbox {" not in delta
        await host.command(delta)
        listed = await host.command("list table inet meshbox\n")
        assert listed == world.list_table("host")
        assert "172.30.0.9" in listed
        assert "20001" not in listed
        assert await host.command("") == ""
        await host.command(REMOVE)
        assert world.list_table("host") == ""

    helped(scenario)


def test_an_idle_helper_ends_and_comes_back_for_the_next_command(world):
    """Nobody pays for a helper that is not needed, and nobody notices that it was away."""

    async def scenario(host: NftHelper) -> None:
        for _ in range(3):
            process = host._process
            await process.wait()
            await host.command(render_host(GUARD))
            assert "20001" in await host.command("list table inet meshbox\n")
            assert host._process.pid != process.pid
        assert host.restarts == 0
        await host.command(REMOVE)

    helped(scenario, idle=0.05)


def test_a_refused_command_brings_nfts_words_and_changes_nothing(world):
    """The helper goes on after an error."""

    async def scenario(host: NftHelper) -> None:
        await host.command(render_host(GUARD))
        before = world.list_table("host")
        with pytest.raises(RetryError, match="No such file or directory"):
            await host.command("flush table inet meshbox\nadd rule inet meshbox nowhere accept\n")
        with pytest.raises(RetryError, match="syntax error"):
            await host.command("bogus\n")
        assert world.list_table("host") == before

    helped(scenario)


def test_the_probe_tells_version_and_features_and_changes_nothing(world):
    """All our rulesets are checked by nft and the kernel in a dry run."""

    async def scenario(host: NftHelper) -> None:
        found = await features.probe(host.dry_run)
        assert found.version >= features.OLDEST
        assert found.doors
        assert world.list_table("host") == ""
        with pytest.raises(RetryError):
            await host.dry_run("add rule inet meshbox nowhere accept\n")
        await host.dry_run(render_workload(RULES))
        assert world.list_table("host") == ""

    helped(scenario)


def test_a_kernel_without_doors_is_fine(world, monkeypatch):
    """The probe tells that they are missing, and nothing else is."""
    monkeypatch.setattr(features, "door_sample", lambda: "add rule inet meshbox nowhere accept\n")

    async def scenario(host: NftHelper) -> None:
        found = await features.probe(host.dry_run)
        assert not found.doors

    helped(scenario)


def test_a_helper_that_dies_is_started_again(world):
    """A crash costs the command under way, and nothing else."""

    async def scenario(host: NftHelper) -> None:
        for deaths in (1, 2):
            await host.command(render_host(GUARD))
            assert host._process is not None
            os.kill(host._process.pid, signal.SIGKILL)
            with pytest.raises(RetryError, match="started again"):
                await host.command(REMOVE)
            while host.restarts < deaths or host._process is None:
                await trio.sleep(0.01)
        assert await host.command("list table inet meshbox\n") == world.list_table("host") != ""

    helped(scenario)


def test_a_helper_that_hangs_is_killed(world):
    """A command that takes too long fails, and the next one has a helper of its own."""

    async def scenario(host: NftHelper) -> None:
        assert host._process is not None
        hanging = host._process
        os.kill(hanging.pid, signal.SIGSTOP)
        with pytest.raises(RetryError, match="hung"):
            await host.command(REMOVE)
        assert await hanging.wait() == -signal.SIGKILL
        host._timeout = 10
        while host._process is None:
            await trio.sleep(0.01)
        await host.command(REMOVE)

    helped(scenario, timeout=0.2)


def test_a_cancelled_command_does_not_answer_the_next_one(world):
    """Each caller gets the answer to its own question."""

    async def scenario(host: NftHelper) -> None:
        await host.command(render_host(GUARD))
        assert host._process is not None
        os.kill(host._process.pid, signal.SIGSTOP)
        with trio.move_on_after(0.05):
            await host.command("list ruleset\n")
        while host._process is None:
            await trio.sleep(0.01)
        assert await host.command(REMOVE) == ""

    helped(scenario)


def test_the_helper_ends_with_the_appliance(world):
    """No process is left behind, and what was pushed stays."""
    pids = []

    async def scenario(host: NftHelper) -> None:
        await host.command(render_host(GUARD))
        assert host._process is not None
        pids.append(host._process.pid)

    helped(scenario)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert world.list_table("host") != ""


def test_changes_of_the_hosts_table_by_others_are_told_and_our_own_are_not(world):
    """The same watch as in workloads' namespaces serves the host's."""
    drifts: list[NetnsId] = []

    async def scenario(host: NftHelper) -> None:
        async with trio.open_nursery() as nursery:
            watch = RulesetWatch(on_drift=drifts.append)
            await nursery.start(watch.run)
            watch.add(world.netns("host"))
            await host.command(render_host(GUARD))
            await host.command(render_host(GUARD))
            world.nft("host", "add table ip nat\nadd chain ip nat DOCKER\n")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert drifts == []
            world.nft("host", "flush chain inet meshbox guard\n")
            with trio.fail_after(5):
                while not drifts:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        watch.close()
        assert drifts == [world.netns("host").id]

    helped(scenario)


def test_a_missing_binding_says_what_to_install(world, tmp_path, monkeypatch):
    """The helper tells it in its greeting, and every command and the probe raise it."""
    (tmp_path / "nftables.py").write_text("raise ImportError('no such thing')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def scenario(host: NftHelper) -> None:
        with pytest.raises(HostError, match="pip install pip-nftables"):
            await host.command(REMOVE)
        with pytest.raises(HostError, match="pip install pip-nftables"):
            await features.probe(host.dry_run)

    helped(scenario)


def test_a_missing_library_says_what_to_install(world, tmp_path, monkeypatch):
    """As when only the binding was installed."""
    (tmp_path / "nftables.py").write_text("def Nftables():\n    raise OSError('libnftables.so.1: cannot open')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def scenario(host: NftHelper) -> None:
        with pytest.raises(HostError, match="apt-get install libnftables1"):
            await features.probe(host.dry_run)

    helped(scenario)


@pytest.mark.parametrize("version", ["nftables v0.9.5 (Capital Idea)", "nftables v0.9 (old)", "something else"])
def test_too_old_an_nft_is_named(world, tmp_path, monkeypatch, version):
    """With the version that is needed."""
    old = tmp_path / "nft"
    old.write_text(f"#!/bin/sh\necho '{version}'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def scenario(host: NftHelper) -> None:
        with pytest.raises(HostError, match=r"older than 0\.9\.6; apt-get install nftables"):
            await features.probe(host.dry_run)

    helped(scenario)


def test_a_change_of_elements_starts_no_program(world, monkeypatch):
    """The helper enters the workload's namespace for it, and is back in the host's for the next command."""

    async def scenario(host: NftHelper) -> None:
        nft = Nft(host)
        await nft.push(world.path("workload"), render_workload(RULES))
        with monkeypatch.context() as without:
            without.setenv("PATH", "/nonexistent")
            await nft.push(world.path("workload"), change_workload(RULES, MORE))
            await host.command(render_host(GUARD))
            await nft.push(world.path("workload"), render_workload(RULES))
            with pytest.raises(HostError, match="nsenter"):
                await nft.push(world.path("workload"), render_workload(LONG))
            await nft.push(world.path("workload"), change_workload(RULES, MORE))
        assert "241.0.0.99" in world.list_table("workload")
        assert "chain guard" in world.list_table("host")
        await nft.push(world.path("workload"), change_workload(MORE, RULES))
        assert "241.0.0.99" not in world.list_table("workload")
        await nft.push(world.path("workload"), REMOVE)
        assert world.list_table("workload") == ""
        assert (nft.pushed, nft.failed) == (6, 0)

    helped(scenario)


def test_a_refused_change_names_the_namespace_and_leaves_all_as_it_was(world):
    """One line, whether nft refuses it or the namespace has gone; the helper goes on in its own."""

    async def scenario(host: NftHelper) -> None:
        nft = Nft(host)
        before = world.list_table("workload")
        with pytest.raises(RetryError, match=f"nft in network namespace {world.path('workload')}: .*No such file"):
            await nft.push(world.path("workload"), change_workload(RULES, MORE))
        with pytest.raises(RetryError, match="nft in network namespace /run/netns/gone: No such file or directory"):
            await nft.push("/run/netns/gone", change_workload(RULES, MORE))
        with pytest.raises(RetryError, match="nft in network namespace /dev/null: Invalid argument"):
            await nft.push("/dev/null", change_workload(RULES, MORE))
        assert world.list_table("workload") == before
        assert (nft.pushed, nft.failed, host.restarts) == (0, 3, 0)
        await host.command(render_host(GUARD))
        assert "chain guard" in world.list_table("host")

    helped(scenario)


def test_a_change_does_not_wait_for_a_helper(world):
    """One that sleeps, has died or has never started: nft does it."""

    async def scenario(host: NftHelper) -> None:
        nft = Nft(host)
        await nft.push(world.path("workload"), render_workload(RULES))
        if host._idle < 1:
            while host.pid is not None:
                await trio.sleep(0.01)
        else:
            assert host._process is not None
            os.kill(host._process.pid, signal.SIGKILL)
            await host._process.wait()
            with pytest.raises(RetryError, match="started again"):
                await nft.push(world.path("workload"), change_workload(RULES, MORE))
        assert host.pid is None
        await nft.push(world.path("workload"), change_workload(RULES, MORE))
        assert "241.0.0.99" in world.list_table("workload")

    helped(scenario, idle=0.05)
    helped(scenario)
    never = Nft(NftHelper())
    trio.run(never.push, world.path("workload"), change_workload(MORE, RULES))
    assert "241.0.0.99" not in world.list_table("workload")


def test_changes_that_follow_each_other_are_not_taken_for_others(world):
    """Also where the kernel still frees what the one before has deleted."""
    drifts: list[NetnsId] = []

    async def scenario(host: NftHelper) -> None:
        async with trio.open_nursery() as nursery:
            watch = RulesetWatch(on_drift=drifts.append)
            await nursery.start(watch.run)
            watch.add(world.netns("workload"))
            nft = Nft(host)
            await nft.push(world.path("workload"), render_workload(RULES))
            for _ in range(10):
                await nft.push(world.path("workload"), change_workload(RULES, MORE))
                await nft.push(world.path("workload"), change_workload(MORE, RULES))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert drifts == []
            nursery.cancel_scope.cancel()
        watch.close()

    helped(scenario)
