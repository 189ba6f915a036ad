"""When a failed step may be tried again, and what is a fault by then."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from math import inf

import pytest
import trio
import trio.testing

from appliance.control.attempts import NOW, Attempts
from appliance.errors import NotYetError, RetryError
from appliance.model.names import Destination, Protocol
from appliance.model.network import HostRuleset, Netns, NetnsId, Registration, Route, WorkloadRuleset
from appliance.model.state import PushHostRuleset, PushRuleset, Register, subject_of

RULES = WorkloadRuleset(
    netns=Netns(id=NetnsId(device=4, inode=1), path="/netns/1"),
    proxy=IPv4Address("172.18.0.1"),
    dns_port=53,
    vip_range=IPv4Network("240.0.0.0/4"),
    proxy_ports=(20000, 29999),
)
GUARD = HostRuleset(proxy_ports=(20000, 29999), dns_port=53)


def step(name: str = "web.shop", weight: int = 1) -> Register:
    """Return some step; those of one name are about the same."""
    return Register(registration=Registration(destination=Destination.parse(f"{name}:80"), proxy_port=1, weight=weight))


def fail(attempts: Attempts, failed: Register, now: float) -> float:
    """Let a step fail, and the pass end at `now`; return in how many seconds the next one comes."""
    assert attempts.failed(failed, RetryError("no"))
    attempts.end_pass(now, {subject_of(failed)})
    return attempts.next_due(now) - now


def test_each_failure_in_a_row_waits_longer():
    """A step is held until it is due, and not after."""
    attempts = Attempts(lambda: None)
    now = 0.0
    for expected in (0.2, 1.0, 2.0, 5.0, 10.0, 10.0):
        assert not attempts.held(step(), now)
        assert fail(attempts, step(), now) == pytest.approx(expected)
        assert attempts.held(step(), now + expected - 0.01)
        now += expected + 0.01
    attempts.succeeded(step())
    assert attempts.next_due(now) == inf
    assert fail(attempts, step(), now) == pytest.approx(0.2)


def test_subjects_do_not_wait_for_each_other():
    """Each has its own count; the next pass is the earliest of all."""
    attempts = Attempts(lambda: None)
    one, other = step("a.a"), step("b.b")
    for _ in range(5):
        attempts.failed(one, RetryError("no"))
    attempts.failed(other, RetryError("no"))
    attempts.end_pass(0.0, {subject_of(one), subject_of(other)})
    assert attempts.next_due(0.0) == pytest.approx(0.2)
    assert not attempts.held(other, 0.3)
    assert attempts.held(one, 0.3)
    assert attempts.next_due(0.3) == pytest.approx(10.0), "what is due already does not start a pass of its own"


def test_readiness_is_no_other_aim():
    """It changes often, and would have a namespace that refuses its rules tried again each time."""
    attempts = Attempts(lambda: None)
    route = Route(vip=IPv4Address("240.0.0.1"), port=80, protocol=Protocol.TCP, proxy_port=20001)
    rules = replace(RULES, routes=frozenset({route}))
    attempts.failed(PushRuleset(before=None, after=rules), RetryError("no"))
    attempts.failed(PushHostRuleset(before=None, after=GUARD), RetryError("no"))
    assert attempts.held(PushRuleset(before=None, after=replace(rules, closed=rules.routes)), 0.0)
    assert not attempts.held(PushRuleset(before=None, after=RULES), 0.0)
    unserved = frozenset({(Protocol.TCP, 20001)})
    assert attempts.held(PushHostRuleset(before=None, after=replace(GUARD, closed=unserved)), 0.0)
    assert not attempts.held(PushHostRuleset(before=None, after=replace(GUARD, dns_port=54)), 0.0)


def test_another_aim_is_not_held():
    """Nor is a subject that the last pass had nothing to do for."""
    attempts = Attempts(lambda: None)
    fail(attempts, step(), 0.0)
    assert not attempts.held(step(weight=2), 0.0)
    attempts.end_pass(0.1, frozenset())
    assert not attempts.held(step(), 0.1)


def test_renewed_subject_is_not_held():
    """Whatever is called so by now is another one."""
    attempts = Attempts(lambda: None)
    fail(attempts, step(), 0.0)
    attempts.renew("other.shop:80/tcp")
    assert attempts.held(step(), 0.0)
    attempts.renew("web.shop:80/tcp")
    assert not attempts.held(step(), 0.0)


class Missing:
    """Something that comes by itself, or does not within a second."""

    def __init__(self) -> None:
        self.there = trio.Event()
        self.woken = trio.Event()
        self.waits = 0
        self.attempts = Attempts(self.woken.set)

    async def wait(self) -> bool:
        """Wait for it."""
        self.waits += 1
        with trio.move_on_after(1.0):
            await self.there.wait()
            return True
        return False

    def fail(self) -> bool:
        """Let the step fail for the lack of it; return whether that is a fault."""
        found = self.attempts.failed(step(), NotYetError("not yet", self.wait))
        self.attempts.end_pass(trio.current_time(), {subject_of(step())})
        return found


def play(scene) -> None:
    """Run `scene(missing)` on a clock that jumps."""

    async def main() -> None:
        missing = Missing()
        async with trio.open_nursery() as nursery:
            missing.attempts.wait_in(nursery)
            await scene(missing)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_comes_in_time_is_no_fault():
    """The step is due at once when it is there, and not before."""

    async def scene(missing: Missing) -> None:
        assert not missing.fail()
        await trio.sleep(0.5)
        assert missing.attempts.held(step(), trio.current_time())
        assert missing.attempts.next_due(NOW) == inf
        missing.there.set()
        await missing.woken.wait()
        assert trio.current_time() == 0.5
        assert not missing.attempts.held(step(), trio.current_time())

    play(scene)


def test_what_does_not_come_is_a_fault_and_still_awaited():
    """After the usual time it is tried once more, and that failure counts; then the schedule goes beside the wait."""

    async def scene(missing: Missing) -> None:
        assert not missing.fail()
        await missing.woken.wait()
        assert trio.current_time() == 1.0
        missing.woken = trio.Event()
        missing.attempts._wake = missing.woken.set
        assert missing.fail()
        assert missing.attempts.next_due(trio.current_time()) == pytest.approx(1.2)
        await trio.sleep(0.1)
        missing.there.set()
        await missing.woken.wait()
        assert trio.current_time() == pytest.approx(1.1)
        assert not missing.attempts.held(step(), trio.current_time())

    play(scene)


def test_nobody_waits_for_what_is_not_wanted_any_more():
    """The waiting ends with the step, whether that is done, moot or renewed."""

    async def scene(missing: Missing) -> None:
        for end in (
            lambda: missing.attempts.succeeded(step()),
            lambda: missing.attempts.end_pass(0.0, frozenset()),
            lambda: missing.attempts.renew(subject_of(step()).about),
        ):
            missing.fail()
            await trio.testing.wait_all_tasks_blocked()
            end()
            await trio.testing.wait_all_tasks_blocked()
            missing.there.set()
            await trio.sleep(2)
            missing.there = trio.Event()
        assert missing.waits == 3
        assert not missing.woken.is_set()

    play(scene)


def test_without_a_loop_it_is_a_failure_like_any_other():
    """Nobody could wait."""

    async def wait() -> bool:
        raise AssertionError

    attempts = Attempts(lambda: None)
    assert attempts.failed(step(), NotYetError("not yet", wait))
    attempts.end_pass(0.0, {subject_of(step())})
    assert attempts.next_due(0.0) == pytest.approx(0.2)
