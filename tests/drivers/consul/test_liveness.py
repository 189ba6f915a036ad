"""Machines that are not healthy but alive, over real sockets, on loopback addresses that stand for machines."""

from __future__ import annotations

import resource
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import structlog
import trio
from together import run_together

from appliance.drivers.consul import liveness, presence
from appliance.drivers.consul.liveness import Liveness
from appliance.drivers.consul.presence import Presence
from appliance.model.facts import Machine
from tests.realconsul import free_ports

ONE = Machine(node="m1", address=IPv4Address("127.0.0.5"))
"""At an address that the kernel would not choose."""


@pytest.fixture
def port():
    """A port that nobody has."""
    return free_ports(1)


def other(port, *, node="m2", **fields):
    """A machine that is not healthy."""
    return Machine(node=node, address=IPv4Address("127.0.0.2"), presence_port=port, healthy=False, **fields)


class World:
    """The first machine, which asks, and how often the second was asked."""

    def __init__(self):
        self.held = False
        self.changes = 0
        self.asked = 0
        self.seen: tuple[Machine, ...] = ()
        self.liveness = Liveness("m1", held=lambda: self.held, changed=self._changed)

    def _changed(self):
        self.changes += 1
        self.judge(*self.seen)

    def judge(self, *machines):
        """Take these for registered."""
        self.seen = self.liveness.judge((ONE, *(m for m in machines if m.node != "m1")))

    @property
    def answers(self):
        """Whether each answers."""
        return {m.node: m.answers for m in self.seen if m.node != "m1"}

    @asynccontextmanager
    async def alive(self, port, node="m2"):
        """Let the second machine run."""

        def knows(address):
            self.asked += 1
            return address == ONE.address

        async with trio.open_nursery() as nursery:
            there = Presence(node, knows)
            there.open((port, port), frozenset())
            nursery.start_soon(there.run)
            yield
            nursery.cancel_scope.cancel()
            there.close()


async def until(condition):
    """Wait until the condition holds."""
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


@pytest.fixture
def fast(monkeypatch):
    """Ask more often, so that tests need not wait for it."""
    monkeypatch.setattr(liveness, "PERIOD", 0.02)


def run(script):
    """Run a script beside one that asks."""

    async def main():
        world = World()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_together, world.liveness.parts)
            await script(world)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_dead_machine_loses_its_right_at_once(port):
    """It keeps it until it was asked, which happens as soon as it is not healthy."""

    async def script(world):
        world.judge(replace(other(port), healthy=True))
        assert world.answers == {"m2": True}
        world.judge(other(port))
        assert world.answers == {"m2": True}
        with structlog.testing.capture_logs() as logs, trio.fail_after(liveness.PERIOD):
            await until(lambda: world.answers == {"m2": False})
        assert world.changes == 1
        (line,) = logs
        assert line["event"] == "a machine does not answer; it may not call until it does"
        assert (line["machine"], line["cause"]) == ("m2", f"127.0.0.2:{port}: Connection refused")

    run(script)


def test_machine_that_lives_keeps_its_right(port, fast):
    """It is asked again and again, from the address that it knows, and nothing changes."""

    async def script(world):
        async with world.alive(port):
            world.judge(other(port))
            await until(lambda: world.asked > 5)
        assert world.changes == 0

    run(script)


def test_death_of_one_that_lived_without_consul_and_its_return(port, fast):
    """It is noticed, and so is that it answers again; another node in its place is not it."""

    async def script(world):
        async with world.alive(port):
            world.judge(other(port))
            await until(lambda: world.asked)
            assert world.answers == {"m2": True}
        await until(lambda: world.answers == {"m2": False})
        async with world.alive(port, node="m3"):
            asked = world.asked
            await until(lambda: world.asked > asked + 2)
            assert world.answers == {"m2": False}
        with structlog.testing.capture_logs() as logs:
            async with world.alive(port):
                await until(lambda: world.answers == {"m2": True})
        assert {"event": "a machine answers again; it may call", "machine": "m2", "log_level": "info"} in logs

    run(script)


def test_machine_out_of_reach_loses_its_right_after_a_while(monkeypatch):
    """Where nothing answers, it keeps it for as long as an answer is waited for; others are not kept waiting by it."""
    monkeypatch.setattr(presence, "PATIENCE", 1.0)
    hole = socket.create_server(("127.0.0.2", 0), backlog=0)  # which never accepts

    async def script(world):
        gone = free_ports(1)
        began = trio.current_time()
        world.judge(other(hole.getsockname()[1]), other(gone, node="m3"))
        await until(lambda: world.answers == {"m2": True, "m3": False})
        await until(lambda: world.answers == {"m2": False, "m3": False})
        assert trio.current_time() - began >= 1.0

    with hole:
        run(script)


def test_what_fails_here_leaves_it_as_it_was(port, fast):
    """Without descriptors nobody can be asked: who could call still can, who could not still cannot; said once each."""

    async def script(world):
        _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
        try:
            with structlog.testing.capture_logs() as logs:
                world.judge(other(port), other(port, node="m3", answers=False))
                await until(lambda: len(logs) == 2)
                await trio.sleep(liveness.PERIOD * 10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert world.answers == {"m2": True, "m3": False}
        assert world.changes == 0
        event = "cannot ask a machine whether it is alive; it may call as before"
        assert sorted((line["event"], line["machine"]) for line in logs) == [(event, "m2"), (event, "m3")]
        assert "Too many open files" in logs[0]["cause"]
        await until(lambda: world.answers == {"m2": False, "m3": False})

    run(script)


def test_nobody_loses_anything_while_facts_are_held(port, fast):
    """It may be this machine that is cut off. A machine that answers gets its right back anyway."""

    async def script(world):
        world.held = True
        async with world.alive(port, node="m9"):  # so that it can be seen that they are asked
            world.judge(other(port))
            await until(lambda: world.asked > 3)
            assert world.answers == {"m2": True}
            world.held = False
            await until(lambda: world.answers == {"m2": False})
            world.held = True
        async with world.alive(port):
            await until(lambda: world.answers == {"m2": True})

    run(script)


def test_without_a_port():
    """A machine that has none, one of a former version for example, cannot say that it is alive."""

    async def script(world):
        world.judge(other(None))
        assert world.answers == {"m2": False}
        world.judge(replace(other(None), healthy=True))
        assert world.answers == {"m2": True}

    run(script)


def test_what_was_known_before_a_restart(port):
    """One that did not answer then has no right until it does; this machine itself is never asked."""

    async def main():
        world = World()
        world.judge(other(port, answers=False))
        assert world.answers == {"m2": False}
        async with world.alive(port), trio.open_nursery() as nursery:
            nursery.start_soon(run_together, world.liveness.parts)
            await until(lambda: world.answers == {"m2": True})
            nursery.cancel_scope.cancel()
        (own,) = world.liveness.judge([replace(ONE, healthy=False, presence_port=port, answers=False)])
        assert own.answers
        assert not world.liveness._asked

    trio.run(main)


@pytest.mark.parametrize("end", ["healthy", "forgotten"])
def test_it_is_not_asked_for_ever(port, fast, end):
    """Once it is healthy again, or not known any more, nobody asks; the next time it begins anew with its right."""

    async def script(world):
        world.judge(other(port))
        await until(lambda: world.answers == {"m2": False})
        world.judge(*([replace(other(port), healthy=True)] if end == "healthy" else []))
        await until(lambda: not world.liveness._nursery.child_tasks)
        world.judge(other(port))
        assert world.answers == {"m2": True}
        await until(lambda: world.answers == {"m2": False})

    run(script)


def test_this_machines_own_port(port):
    """Machines that are known are answered there, healthy or not; the registry says which port it has taken."""

    async def script(world):
        there = Liveness("m2", held=lambda: False, changed=lambda: None)
        assert there.open((port, port), frozenset(), None) == port
        assert there.ports == {port}
        there.judge([replace(ONE, healthy=False)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_together, there.parts)
            await presence.ask("m2", IPv4Address("127.0.0.2"), port, ONE.address)
            there.judge([])
            with pytest.raises(presence.NoAnswerError):
                await presence.ask("m2", IPv4Address("127.0.0.2"), port, ONE.address)
            nursery.cancel_scope.cancel()
        there.close()

    run(script)


def test_an_error_that_nobody_has_foreseen_changes_no_right(port, fast, monkeypatch):
    """It is told once, and the machine is asked again."""

    async def broken(*_):
        await trio.lowlevel.checkpoint()
        raise KeyError("what")

    async def script(world):
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(liveness, "ask", broken)
            world.judge(other(port))
            await trio.sleep(0.1)
        assert world.answers == {"m2": True}
        assert [line["cause"] for line in logs] == ["KeyError: 'what'"]
        await until(lambda: world.answers == {"m2": False})

    run(script)
