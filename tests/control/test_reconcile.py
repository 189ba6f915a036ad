"""The reconcile loop: what it remembers, retries and repairs. Effects are a fake that checks what it is told."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from appliance.control.reconcile import DEBOUNCE, FRESH, FULL_PASS, TURN, URGENT, Reconciler
from appliance.errors import NotYetError, RetryError
from appliance.faults import Faults
from appliance.heartbeat import Heartbeat, Heartbeats
from appliance.model import state as st
from appliance.model.facts import Attachment, DockerNetwork, RunState, Settings, Snapshot, Workload
from appliance.model.names import Allowance, Destination, Name, Port, Protocol
from appliance.model.network import Netns, NetnsId
from appliance.model.registry import Interests
from appliance.plan.compile import Plan
from appliance.plan.replicas.rollout import CLAIM
from tests.plan.cases import MEMBERS, bound, declared, machine, managed, spec

NETWORK = DockerNetwork(
    name="bridge",
    driver="bridge",
    subnets=(IPv4Network("172.18.0.0/16"),),
    gateways=(IPv4Address("172.18.0.1"),),
)


def workload(number: int, name: str, **fields) -> Workload:
    """A running container with its own namespace and address."""
    return Workload(
        id=f"{number:064x}",
        docker_name=f"c{number}",
        name=Name.parse(name),
        state=RunState.RUNNING,
        netns=Netns(id=NetnsId(device=4, inode=number), path=f"/netns/{number}"),
        attachments=(
            Attachment(network="bridge", address=IPv4Address(f"172.18.0.{number}"), gateway=IPv4Address("172.18.0.1")),
        ),
        bound=bound(80),
        **fields,
    )


SERVER = workload(2, "apple.orange", ports=(Port.parse(80),))
SERVER_DESTINATION = Destination(name=SERVER.name, port=80, protocol=Protocol.TCP)
CLIENT = workload(3, "flask.flask", connect_to=(Allowance.parse("apple.orange:80"),))


class ContradictionError(BaseException):
    """A step contradicts those before it."""


@dataclass
class FakeEffects:
    """Records what it is told, refuses what contradicts what it was told before, and fails on demand.

    `fail` is by kind of call, or by a whole call.
    """

    calls: list[str] = field(default_factory=list)
    fail: dict[str, Exception] = field(default_factory=dict)
    meanwhile: dict[str, Callable[[], None]] = field(default_factory=dict)
    """What happens once while a call takes its time, after it took effect."""
    open: set = field(default_factory=set)
    rulesets: dict = field(default_factory=dict)
    doors: dict = field(default_factory=dict)
    routes: dict = field(default_factory=dict)
    zone: object = None
    claims: object = None
    sources: object = None
    hang: str = ""
    """A kind of call, or a whole one, that never returns."""

    def _note(self, call: str, detail: object = "") -> None:
        whole = f"{call} {detail}".strip()
        self.calls.append(whole)
        if found := self.fail.get(whole) or self.fail.get(call):
            raise found

    async def carry_out(self, step: st.Step) -> None:
        """Do what the step says. Raises ContradictionError, which no part of the loop takes for a failed step."""
        before = len(self.calls)
        try:
            self._carry_out(step)
        except AssertionError as error:
            raise ContradictionError from error
        made = self.calls[-1] if len(self.calls) > before else "claims"
        await trio.lowlevel.checkpoint()
        if self.hang in {made, made.split()[0]}:
            await trio.sleep_forever()

    def _carry_out(self, step: st.Step) -> None:  # noqa: C901, PLR0912 — one case per kind of step
        match step:
            case st.KeepAllocations():
                self._note("keep")
            case st.SetSources():
                self.sources = step.sources
            case st.OpenListener():
                self._note("open", step.listener.port)
                assert step.listener.destination not in self.open
                self.open.add(step.listener.destination)
            case st.SwapListener():
                self._note("swap", step.after.destination)
                assert step.after.destination in self.open
            case st.CloseListener():
                self._note("close", step.listener.destination)
                self.open.remove(step.listener.destination)
            case st.SetDnsAddresses():
                self._note("dns", sorted(map(str, step.after)))
            case st.SetZone():
                self._note("zone")
                self.zone = step.zone
            case st.PushHostRuleset():
                self._note("host ruleset")
                self.meanwhile.pop("host ruleset", lambda: None)()
            case st.PushBridgeRuleset():
                if error := self.fail.get("claims"):
                    raise error
                assert step.before in (None, self.claims)
                self.claims = step.after
            case st.DropBridgeRuleset():
                assert self.claims is not None
                self.claims = None
            case st.PushRuleset():
                netns = step.after.netns
                self._note("push", netns.path)
                assert step.before in (None, self.rulesets.get(netns.id))
                self.rulesets[netns.id] = step.after
                self.meanwhile.pop("push", lambda: None)()
            case st.DropRuleset():
                self._note("drop", step.ruleset.netns.path)
                assert step.ruleset.netns.id not in self.doors | self.routes
                self.rulesets.pop(step.ruleset.netns.id, None)
            case st.AddRoute():
                self._note("route", step.after.netns.path)
                assert step.before in (None, self.routes.get(step.after.netns.id))
                assert step.after.netns.id in self.rulesets
                self.routes[step.after.netns.id] = step.after
            case st.DropRoute():
                self._note("unroute", step.route.netns.path)
                assert step.route.netns.id in self.rulesets
                del self.routes[step.route.netns.id]
            case st.OpenDoor():
                self._note("door", step.after.netns.path)
                assert step.before in (None, self.doors.get(step.after.netns.id))
                assert self.rulesets[step.after.netns.id].door
                self.doors[step.after.netns.id] = step.after
                self.meanwhile.pop("door", lambda: None)()
            case st.CloseDoor():
                self._note("close door", step.door.netns.path)
                assert self.rulesets[step.door.netns.id].door
                del self.doors[step.door.netns.id]
            case st.Register():
                self._note("register", step.registration.destination)
            case st.Deregister():
                self._note("deregister", step.registration.destination)


class Host:
    """A reconciler over facts that a test can change."""

    def __init__(self, *workloads: Workload) -> None:
        self.facts = Snapshot(now=1.0, settings=Settings(node="n1"), workloads=workloads, networks=(NETWORK,))
        self.effects = FakeEffects()
        self.faults = Faults()
        self.planned: list[Snapshot] = []
        self.clock = trio.testing.MockClock()
        self.reconciler = Reconciler(
            snapshot=self._snapshot, carry_out=self.effects.carry_out, faults=self.faults, followers=self
        )
        self.begun: list[tuple[Plan, int]] = []
        """Each plan, and how many calls of effects there were before."""

    def begin(self, plan: Plan) -> None:
        """Take a plan before its steps are taken."""
        self.begun.append((plan, len(self.effects.calls)))

    async def finish(self, plan: Plan, facts: Snapshot) -> None:
        """Take a plan once its steps were taken."""
        assert plan is self.begun[-1][0]
        self.planned.append(facts)

    def _snapshot(self) -> Snapshot:
        return replace(self.facts, allocations=self.reconciler.have.allocations)

    def run(self, after: float = 60.0) -> list[str]:
        """Make one pass so many seconds after the last one, and return the calls that it made."""
        self.effects.calls.clear()
        self.clock.jump(after)
        trio.run(self.reconciler.reconcile, clock=self.clock)
        return list(self.effects.calls)


def test_creates_in_the_order_in_which_things_begin_to_work() -> None:
    """Listener before ruleset before name: nothing is announced before it works."""
    calls = [call.split()[0] for call in Host(SERVER, CLIENT).run()]
    assert calls.index("keep") < calls.index("open") < calls.index("push") < calls.index("zone")


def test_port_that_this_appliance_has_itself_is_left_alone() -> None:
    """One that the facts say is in use is not tried, and those that turn out to be in use are left alone."""
    host = Host(SERVER)
    host.run()
    ((destination, port),) = host.reconciler.have.allocations.ports.items()
    host = Host(SERVER)
    host.facts = replace(host.facts, unusable_ports=frozenset({port}))
    host.reconciler.unusable_ports = frozenset({port + 1})
    host.run()
    assert host.planned[0].unusable_ports == {port, port + 1}
    assert host.reconciler.have.allocations.ports[destination] not in {port, port + 1}


def claiming(started: float) -> Host:
    """A host of two whose one container, which meshbox made, is not ready; it began to run so many seconds ago."""
    pod = spec("pod", declared("a", (80,)), constraint="n1")
    late = replace(managed(2, pod), bound=frozenset(), started_at=1000.0 - started)
    host = Host(late)
    host.facts = replace(
        host.facts,
        now=1000.0,
        specs={"pod": pod},
        machines=(machine("n1", "10.0.0.1"), machine("n2", "10.0.0.2")),
    )
    return host


def test_next_pass_comes_when_it_is_due(autojump_clock) -> None:
    """What follows from time alone is looked at when its time has come, not at the next full pass."""
    host = claiming(CLAIM - 4.0)

    async def script() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            await trio.sleep(3.9)
            assert len(host.planned) == 1
            assert host.begun[-1][0].claims == frozenset()
            host.facts = replace(host.facts, now=1004.0)
            await trio.sleep(0.2)
            assert len(host.planned) == 2
            assert host.begun[-1][0].claims == {"pod/0/a"}
            await trio.sleep(FULL_PASS - 1)
            assert len(host.planned) == 2
            nursery.cancel_scope.cancel()

    trio.run(script, clock=autojump_clock)


def test_claims_follow_what_is_announced(autojump_clock) -> None:
    """What a pass has announced is no longer claimed soon after, without anything else that rings."""
    host = claiming(100.0)

    async def script() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            assert host.begun[-1][0].claims == {"pod/0/a"}
            ready = replace(host.facts.workloads[0], bound=bound(80))
            host.facts = replace(host.facts, workloads=(ready,))
            host.reconciler.ring(urgent=True)
            await trio.sleep(0.01)
            assert "register a.pod:80/tcp" in host.effects.calls
            assert host.begun[-1][0].claims == {"pod/0/a"}
            await trio.sleep(2 * DEBOUNCE)
            assert host.begun[-1][0].claims == frozenset()
            assert len(host.begun) == 3
            nursery.cancel_scope.cancel()

    trio.run(script, clock=autojump_clock)


def test_each_plan_is_made_once_and_followed_before_and_after_its_steps() -> None:
    """Ports are looked up at once; containers, claims and interests follow when the network is as it should be."""
    host = Host(replace(SERVER, bound=frozenset(), started_at=1.0), CLIENT)
    assert len(host.run()) > 3
    ((plan, before),) = host.begun
    assert before == 0
    assert [probe.ports for probe in plan.probes] == [((Protocol.TCP, 80),)]
    assert plan.interests == Interests(services=frozenset({"orange", "flask"}), everything=False)
    assert len(host.planned) == 1


def test_second_pass_over_the_same_facts_does_nothing() -> None:
    """A pass without a change has no effect."""
    host = Host(SERVER, CLIENT)
    host.run()
    assert host.run() == []


def test_failed_push_hides_the_name_and_is_tried_again() -> None:
    """A workload whose rules are not in place gets no names; the next pass repairs both."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push"] = RetryError("nft says no")
    host.run()
    assert host.effects.zone.views == {}
    assert [fault.cause for fault in host.faults.current.values()] == ["nft says no"] * 2
    host.effects.fail.clear()
    host.run()
    assert IPv4Address("172.18.0.3") in host.effects.zone.views
    assert host.faults.current == {}


def test_what_fails_is_tried_again_by_its_own_schedule_only(autojump_clock) -> None:
    """One container that fails for ever is tried more and more seldom; another's first failure ends 0.2 s later."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push /netns/3"] = RetryError("nft says no")
    late = workload(4, "late.orange", ports=(Port.parse(80),))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            await trio.sleep_until(trio.current_time() + 0.2 + 1 + 2 + 5 + 10 + 0.1)
            assert host.effects.calls.count("push /netns/3") == 6
            host.facts = replace(host.facts, workloads=(SERVER, CLIENT, late))
            host.effects.fail["push /netns/4"] = RetryError("not now")
            host.reconciler.ring(urgent=True)
            await trio.testing.wait_all_tasks_blocked()
            assert host.effects.calls.count("push /netns/4") == 1
            del host.effects.fail["push /netns/4"]
            await trio.sleep(0.19)
            assert host.effects.calls.count("push /netns/4") == 1
            await trio.sleep(0.02)
            assert host.effects.calls.count("push /netns/4") == 2
            assert IPv4Address("172.18.0.4") in host.effects.zone.views
            assert host.effects.calls.count("push /netns/3") == 6
            (fault,) = host.faults.current.values()
            assert (fault.cause, fault.count) == ("nft says no", 6)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_bell_does_not_hammer_what_fails(autojump_clock) -> None:
    """Passes for others leave it alone until it is due, and what follows from its failure still holds."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push /netns/3"] = RetryError("nft says no")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            await trio.sleep(0.2 + 1 + 2 + 0.1)
            host.effects.calls.clear()
            before = host.reconciler.passes
            for number in range(40):
                ready = bound(80) if number % 2 else frozenset()
                host.facts = replace(host.facts, workloads=(replace(SERVER, bound=ready), CLIENT))
                host.reconciler.ring(urgent=True)
                await trio.sleep(0.1)
                assert IPv4Address("172.18.0.3") not in host.effects.zone.views
                assert IPv4Address("172.18.0.2") in host.effects.zone.views
            assert host.reconciler.passes >= before + 40
            assert "zone" not in host.effects.calls, "it is the same each time"
            assert host.effects.calls.count("swap apple.orange:80/tcp") == 40
            assert "push /netns/3" not in host.effects.calls
            assert len(host.faults.current) == 1
            await trio.sleep(1)
            assert host.effects.calls.count("push /netns/3") == 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


class Missing:
    """An address that is not there yet."""

    def __init__(self, kind: str, host: Host) -> None:
        self.there = trio.Event()
        self.waits = 0
        self._kind, self._host = kind, host
        host.effects.fail[f"{kind} /netns/3"] = NotYetError("no address", self._wait)

    async def _wait(self) -> bool:
        self.waits += 1
        with trio.move_on_after(1.0):
            await self.there.wait()
            return True
        return False

    def come(self) -> None:
        """Let it be there."""
        del self._host.effects.fail[f"{self._kind} /netns/3"]
        self.there.set()


def inner(*workloads: Workload) -> Host:
    """A host with one network, which is internal."""
    host = Host(*workloads)
    host.facts = replace(host.facts, networks=(replace(NETWORK, internal=True),))
    return host


@pytest.mark.parametrize("kind", ["door", "route"])
def test_address_that_is_not_up_yet_is_no_fault(autojump_clock, kind: str) -> None:
    """The step is done as soon as it is there, and nothing else has waited for it."""
    host = inner(SERVER, CLIENT)
    missing = Missing(kind, host)
    asker = IPv4Address("172.18.0.3")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            await trio.sleep(0.1)
            host.reconciler.ring(urgent=True)
            await trio.sleep(0.1)
            assert host.effects.calls.count(f"{kind} /netns/3") == missing.waits == 1
            assert (asker in host.effects.zone.views) == (kind == "door"), "no name works before its route"
            assert IPv4Address("172.18.0.2") in host.effects.zone.views
            assert host.faults.total == 0
            missing.come()
            await trio.sleep(0.001)
            assert host.reconciler.have == host.reconciler.want
            assert asker in host.effects.zone.views
            assert host.faults.total == 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


@pytest.mark.parametrize(("kind", "schedule"), [("door", (0.2, 1, 5, 30)), ("route", (0.2, 1, 2, 5, 10))])
def test_address_that_does_not_come_is_a_fault(autojump_clock, kind: str, schedule: tuple[float, ...]) -> None:
    """After a second; it is then tried by schedule, and at once when the address comes after all."""
    host = inner(SERVER, CLIENT)
    missing = Missing(kind, host)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            await trio.sleep(0.9)
            assert host.faults.total == 0
            await trio.sleep(0.2)
            (fault,) = host.faults.current.values()
            assert (fault.cause, fault.count) == ("no address", 1)
            for number, pause in enumerate(schedule, start=2):
                await trio.sleep(pause)
                assert fault.count == number
            missing.come()
            await trio.sleep(0.001)
            assert host.reconciler.have == host.reconciler.want
            assert host.faults.current == {}
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_door_that_cannot_be_opened_holds_nothing_up() -> None:
    """It is one fault, in words that say what happens instead; names, announcements and other doors work."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["door /netns/3"] = OSError(errno.EADDRINUSE, "in use")
    with capture_logs() as lines:
        calls = host.run()
    assert calls[-2:] == ["door /netns/2", "door /netns/3"]
    assert calls.count("register apple.orange:80/tcp") == 1
    assert replace(host.reconciler.have, doors={}) == replace(host.reconciler.want, doors={})
    assert host.reconciler.have.doors.keys() == {SERVER.netns.id}
    (line,) = lines
    assert line["event"] == "cannot open the door of a container; its connections go through the host; will try again"
    assert (line["container"], line["netns"]) == ("172.18.0.3", "4:3")
    host.effects.fail.clear()
    assert host.run(after=0.2) == ["door /netns/3"]
    assert host.faults.current == {}


def test_door_that_cannot_be_closed_keeps_its_rules() -> None:
    """Without them a program of the workload would get what is led there."""
    host = inner(SERVER, CLIENT)
    host.run()
    host.facts = replace(host.facts, workloads=(SERVER,))
    host.effects.fail["close door"] = RetryError("no")
    host.run()
    assert CLIENT.netns.id in host.effects.rulesets
    host.effects.fail.clear()
    calls = host.run(after=0.2)
    assert calls == ["close door /netns/3", "drop /netns/3"]


def test_door_waits_for_a_route_that_cannot_be_added_yet() -> None:
    """What leads to the door would pass for that route, and it would be missing once the door is closed."""
    host = inner(SERVER, CLIENT)
    host.effects.fail["route /netns/3"] = RetryError("no interface")
    assert "door /netns/3" not in host.run()
    host.effects.fail.clear()
    assert host.run(after=0.2)[-2:] == ["zone", "door /netns/3"]
    assert host.reconciler.have == host.reconciler.want


@pytest.mark.parametrize("kind", ["door", "route"])
def test_failed_change_of_door_or_route_is_followed_by_the_whole(kind: str) -> None:
    """What is there is unknown then: where what was wanted before is wanted again, it is made again."""
    host = inner(SERVER, CLIENT)
    host.run()
    before = host.facts
    elsewhere = replace(CLIENT.attachments[0], address=IPv4Address("172.18.0.9"), gateway=IPv4Address("172.18.0.8"))
    host.facts = replace(before, workloads=(SERVER, replace(CLIENT, attachments=(elsewhere,))))
    host.effects.fail[kind] = RetryError("no")
    assert f"{kind} /netns/3" in host.run()
    host.effects.fail.clear()
    host.facts = before
    assert f"{kind} /netns/3" in host.run(after=0.1)
    assert host.reconciler.have == host.reconciler.want
    assert host.run() == []


def test_forgotten_rules_take_door_and_route_along() -> None:
    """They are put back with them."""
    host = inner(SERVER, CLIENT)
    host.run()
    host.reconciler.forget_ruleset(CLIENT.netns.id)
    assert CLIENT.netns.id not in host.reconciler.have.doors.keys() | host.reconciler.have.routes.keys()
    assert host.run() == ["push /netns/3", "route /netns/3", "door /netns/3"]


def test_bell_comes_before_doors(autojump_clock) -> None:
    """Opening a thousand doors takes a second: what is urgent need not wait for that, and all are opened."""
    many = [workload(number, "apple.orange", ports=(Port.parse(80),)) for number in range(2, 2 + 3 * TURN)]
    host = Host(*many)
    late = workload(200, "late.orange")

    def appear() -> None:
        host.facts = replace(host.facts, workloads=(*many, late))
        host.reconciler.ring(urgent=True)

    async def main() -> None:
        host.effects.meanwhile["door"] = appear
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            assert len(host.effects.doors) == TURN
            await trio.sleep(0.01)
            assert len(host.effects.doors) == 3 * TURN + 1
            before = host.effects.calls[: host.effects.calls.index("push /netns/200")]
            assert sum(call.startswith("door") for call in before) == 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_a_start_does_not_wait_for_the_end_of_a_pass(autojump_clock) -> None:
    """Its rules come next, before names, doors and what else the pass has left; all the rest is the next one's."""
    host = Host(SERVER)
    late = workload(200, "late.orange")

    def appear() -> None:
        host.facts = replace(host.facts, workloads=(SERVER, CLIENT, late))
        host.reconciler.ring(urgent=True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            host.effects.calls.clear()
            host.effects.meanwhile["host ruleset"] = appear
            host.facts = replace(host.facts, workloads=(SERVER, CLIENT))
            await host.reconciler.settle()
            calls = [call for call in host.effects.calls if call.split()[0] not in {"keep", "swap"}]
            assert calls[:3] == ["push /netns/3", "host ruleset", "push /netns/200"]
            await host.reconciler.settle()
            assert {"zone", "door /netns/3", "door /netns/200"} <= set(host.effects.calls)
            assert host.effects.rulesets.keys() == {w.netns.id for w in host.facts.workloads}
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_starts_without_end_leave_time_for_the_rest(autojump_clock) -> None:
    """A pass goes on to its end, however many containers start meanwhile."""
    host = Host(SERVER)
    number = 200

    def appear() -> None:
        nonlocal number
        number += 1
        if number < 220:
            host.facts = replace(host.facts, workloads=(*host.facts.workloads, workload(number, "late.orange")))
            host.reconciler.ring(urgent=True)
            host.effects.meanwhile["push"] = appear

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            host.effects.calls.clear()
            appear()
            await trio.sleep(10)
            calls = "".join({"push": "p", "zone": "z"}.get(call.split()[0], "") for call in host.effects.calls)
            assert max(map(len, calls.split("z"))) < 16, calls
            assert len(host.effects.doors) == 20
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_changed_step_is_tried_at_once() -> None:
    """What failed before is no judgement of what is wanted now."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push /netns/3"] = RetryError("nft says no")
    host.run()
    assert "push /netns/3" not in host.run(after=0.1)
    host.facts = replace(host.facts, workloads=(SERVER, replace(CLIENT, connect_to=())))
    assert "push /netns/3" in host.run(after=0.0)
    assert "push /netns/3" not in host.run(after=0.1)
    host.effects.fail.clear()
    assert "push /netns/3" not in host.run(after=0.1)
    assert "push /netns/3" in host.run(after=2.0)


def test_new_namespace_of_a_former_number_is_tried_at_once() -> None:
    """The kernel uses inode numbers again: what failed there is over."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push /netns/3"] = RetryError("nft says no")
    host.run()
    host.reconciler.forget_ruleset(CLIENT.netns.id)
    assert "push /netns/3" in host.run(after=0.0)


def test_next_pass_does_not_wait_for_what_cannot_be_tried(autojump_clock) -> None:
    """An announcement is due, but its listener is not open: only the listener's own time starts a pass."""
    host = Host(SERVER)
    host.effects.fail["register"] = RetryError("registry is away")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            host.effects.fail["open"] = OSError(errno.EMFILE, "too many open files")
            host.effects.open.clear()
            host.reconciler.have = replace(host.reconciler.have, listeners={})
            await trio.sleep(0.2 + 0.2 + 1 + 2 + 5 + 10 + 10 + 10 + 0.1)
            assert host.reconciler.passes == 9
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_refused_change_is_followed_by_the_whole_ruleset() -> None:
    """When a change is refused, what is there is not what was thought: the next push does not build upon it."""
    host = Host(SERVER, CLIENT)
    host.run()
    host.facts = replace(host.facts, workloads=(SERVER, replace(CLIENT, connect_to=())))
    host.effects.fail["push"] = RetryError("no such element")
    assert "push /netns/3" in host.run()
    assert CLIENT.netns.id not in host.reconciler.have.rulesets
    host.effects.fail.clear()
    assert "push /netns/3" in host.run()
    assert host.effects.rulesets[CLIENT.netns.id].routes == frozenset()


def test_refused_change_takes_no_name_away() -> None:
    """The rules before it are in force, and so are their names, except where somebody changed these rules meanwhile."""
    asker = IPv4Address("172.18.0.3")
    host = Host(SERVER, CLIENT)
    host.run()
    late = workload(4, "late.orange", ports=(Port.parse(80),))
    wider = replace(CLIENT, connect_to=(*CLIENT.connect_to, Allowance.parse("late.orange:80")))
    host.facts = replace(host.facts, workloads=(SERVER, wider, late))
    host.effects.fail["push"] = RetryError("nft says no")
    for _ in range(2):
        host.run()
        assert host.effects.zone.views[asker] == {SERVER.name, CLIENT.name}
        assert IPv4Address("172.18.0.4") not in host.effects.zone.views
    host.reconciler.forget_ruleset(CLIENT.netns.id)
    host.run()
    assert asker not in host.effects.zone.views
    host.effects.fail.clear()
    host.run()
    assert host.effects.zone.views[asker] == {SERVER.name, CLIENT.name, late.name}


def test_taken_proxy_port_is_replaced_by_another() -> None:
    """A port that something else holds is left alone, and the destination gets another one."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["open"] = OSError(errno.EADDRINUSE, "in use")
    first = next(call for call in host.run() if call.startswith("open"))
    assert not any(call.startswith(("push", "zone")) for call in host.effects.calls)
    host.effects.fail.clear()
    second = next(call for call in host.run() if call.startswith("open"))
    assert first != second


def test_nothing_is_registered_without_its_listener() -> None:
    """Where a listener cannot be opened for whatever reason, others are not sent to it; they are once it is open."""
    host = Host(SERVER)
    host.effects.fail["open"] = OSError(errno.EMFILE, "too many open files")
    assert not any(call.startswith("register") for call in host.run())
    host.effects.fail.clear()
    assert "register apple.orange:80/tcp" in host.run()
    assert host.run() == []


def test_edited_ruleset_is_pushed_anew() -> None:
    """What somebody else changed is unknown, so it is replaced as a whole."""
    host = Host(SERVER, CLIENT)
    host.run()
    host.effects.rulesets.pop(CLIENT.netns.id)
    host.reconciler.forget_ruleset(CLIENT.netns.id)
    assert host.run() == ["push /netns/3", "door /netns/3"]


def test_vanished_workload_takes_everything_of_its_own_along() -> None:
    """Once no container is left, neither listeners, rulesets nor views are."""
    host = Host(SERVER, CLIENT)
    host.run()
    host.facts = replace(host.facts, workloads=())
    host.run()
    assert host.effects.open == set()
    assert host.effects.rulesets == {}
    assert host.effects.zone.views == {}


def test_fault_of_something_that_is_gone_is_forgotten() -> None:
    """A fault about a container that died does not stay in the list of faults."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push"] = RetryError("no such namespace")
    host.run()
    host.facts = replace(host.facts, workloads=())
    host.run()
    assert host.faults.current == {}


def test_exhausted_range_keeps_nothing_else_from_working() -> None:
    """What fits is served, what has a port keeps it, the rest is one fault, and containers are still planned."""
    host = Host(SERVER, CLIENT)
    host.run()
    (port,) = host.reconciler.have.allocations.ports.values()
    late = workload(4, "a.b", ports=(Port.parse(1), Port.parse(2)), connect_to=(Allowance.parse("apple.orange:80"),))
    tight = replace(host.facts, settings=replace(host.facts.settings, proxy_ports=(port, port)))
    host.facts = replace(tight, workloads=(SERVER, CLIENT, late))
    for _ in range(2):
        host.run()
    assert host.planned[-1].workloads == host.facts.workloads
    assert host.effects.open == set(host.reconciler.have.listeners) == {SERVER_DESTINATION}
    assert {r.proxy_port for r in host.effects.rulesets[late.netns.id].routes} == {port}
    fault = host.faults.current["plan"]
    assert (fault.count, "a.b:1/tcp, a.b:2/tcp: widen proxy_ports" in fault.cause) == (2, True)
    host.facts = replace(tight, workloads=(late,))
    host.run()
    assert len(host.effects.open) == 1
    assert "plan" in host.faults.current
    host.facts = replace(host.facts, settings=replace(tight.settings, proxy_ports=(20000, 20099)))
    host.run()
    assert len(host.effects.rulesets[late.netns.id].routes) == 2
    assert host.faults.current == {}


@pytest.mark.parametrize("urgent", [False, True])
def test_bell_starts_a_pass(autojump_clock, urgent: bool) -> None:
    """A rung bell leads to a pass soon, long before the full pass is due."""
    host = Host(SERVER)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            host.facts = replace(host.facts, workloads=(SERVER, CLIENT))
            host.reconciler.ring(urgent=urgent)
            with trio.fail_after(2):
                while CLIENT.netns.id not in host.effects.rulesets:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_urgent_bells_without_end_leave_time_for_traffic(autojump_clock) -> None:
    """Thousands of starts of containers cause so many passes a second and no more; then one is prompt again."""
    host = Host(SERVER)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            before = host.reconciler.passes
            for _ in range(5000):
                host.reconciler.ring(urgent=True)
                await trio.sleep(0.001)
            assert 5 <= host.reconciler.passes - before <= 6 * URGENT
            await trio.sleep(2)
            host.facts = replace(host.facts, workloads=(SERVER, CLIENT))
            host.reconciler.ring(urgent=True)
            await trio.sleep(0.01)
            assert CLIENT.netns.id in host.effects.rulesets
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


@pytest.mark.parametrize("whose", ["host", "container"])
def test_edited_rules_do_not_wait_for_the_full_pass(autojump_clock, whose: str) -> None:
    """What somebody else changed is pushed anew at once."""
    host = Host(SERVER, CLIENT)
    expected = ["host ruleset"] if whose == "host" else ["push /netns/3", "door /netns/3"]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            host.effects.calls.clear()
            if whose == "host":
                host.reconciler.forget_host_ruleset()
            else:
                host.effects.rulesets.pop(CLIENT.netns.id)
                host.reconciler.forget_ruleset(CLIENT.netns.id)
            with trio.fail_after(2):
                while host.effects.calls != expected:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


@pytest.mark.parametrize("whose", ["host", "container"])
def test_edited_rules_that_were_refused_are_pushed_at_once(whose: str) -> None:
    """Whatever was refused before, it is other rules that stand there by now."""
    host = Host(SERVER, CLIENT)
    call = "host ruleset" if whose == "host" else "push /netns/3"
    host.effects.fail[call] = RetryError("nft says no")
    host.run()
    assert call not in host.run(after=0.0)
    if whose == "host":
        host.reconciler.forget_host_ruleset()
    else:
        host.reconciler.forget_ruleset(CLIENT.netns.id)
    assert call in host.run(after=0.0)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("whose", ["host", "container"])
def test_rules_edited_while_a_pass_pushes_them_are_pushed_anew(autojump_clock, whose: str, known: bool) -> None:
    """An edit right after a push, before its pass has ended, is not taken for what was pushed."""
    host = Host(SERVER, CLIENT)

    def edit() -> None:
        if whose == "host":
            host.reconciler.forget_host_ruleset()
        else:
            host.effects.rulesets.pop(CLIENT.netns.id)
            host.reconciler.forget_ruleset(CLIENT.netns.id)

    kind, push = ("host ruleset",) * 2 if whose == "host" else ("push", "push /netns/3")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if not known:
                host.effects.meanwhile[kind] = edit
            await nursery.start(host.reconciler.run)
            if known:
                host.effects.calls.clear()
                host.effects.meanwhile[kind] = edit
                edit()
            with trio.fail_after(2):
                while host.effects.calls.count(push) < 2 or host.reconciler.have != host.reconciler.want:
                    await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked()
            assert host.effects.calls.count(push) == 2
            nursery.cancel_scope.cancel()

    host.facts = replace(host.facts, workloads=(CLIENT,) if whose == "container" else (SERVER, CLIENT))
    trio.run(main, clock=autojump_clock)


@pytest.fixture
def autojump_clock() -> trio.abc.Clock:
    """Time that passes only while nothing can run."""
    import trio.testing

    return trio.testing.MockClock(autojump_threshold=0)


def test_claims_are_held_while_they_are_in_place_and_fresh() -> None:
    """Neither a loop that stands still nor claims that nft refuses keep the lease alive."""
    host = Host(SERVER)

    async def holds() -> bool:
        await trio.lowlevel.checkpoint()
        return host.reconciler.holds_claims()

    assert not trio.run(holds, clock=host.clock)
    host.run()
    assert trio.run(holds, clock=host.clock)
    host.clock.jump(FRESH + 1)
    assert not trio.run(holds, clock=host.clock)
    host.facts = replace(host.facts, members=MEMBERS[:1])
    host.effects.fail["claims"] = RetryError("Operation not permitted")
    host.run()
    assert not trio.run(holds, clock=host.clock)
    assert any(str(key) == "push bridge ruleset host" for key in host.faults.current)
    del host.effects.fail["claims"]
    host.run()
    assert trio.run(holds, clock=host.clock)
    host.reconciler.forget_host_ruleset()
    assert not trio.run(holds, clock=host.clock)
    host.run()
    assert host.effects.claims == host.reconciler.want.bridge_ruleset
    host.facts = replace(host.facts, workloads=())
    host.run()
    assert host.effects.claims is None
    assert not trio.run(holds, clock=host.clock)


def test_settling_is_a_pass_that_began_afterwards(autojump_clock) -> None:
    """What was known before is carried out by then."""
    host = Host(SERVER)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.reconciler.run)
            host.facts = replace(host.facts, workloads=(SERVER, CLIENT))
            with trio.fail_after(2):
                await host.reconciler.settle()
            assert CLIENT.netns.id in host.effects.rulesets
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_a_step_that_nobody_has_foreseen_to_fail_is_its_subjects_problem() -> None:
    """It is a fault with its traceback, and everything else is done."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push /netns/3"] = KeyError("what is not there")
    with capture_logs() as lines:
        calls = host.run()
    assert "push /netns/2" in calls
    assert "zone" in calls
    (line,) = lines
    assert line["cause"] == "KeyError: 'what is not there'"
    assert isinstance(line["exc_info"], KeyError)
    host.effects.fail.clear()
    assert "push /netns/3" in host.run()
    assert host.reconciler.have == host.reconciler.want
    assert host.faults.current == {}


@pytest.mark.parametrize("call", ["push /netns/3", "host ruleset", "keep", "register", "door /netns/3", "route"])
def test_what_a_pass_has_done_is_known_also_where_it_is_cut_short(call: str) -> None:
    """As where the loop is started again: nothing is done twice but the step that was cut, which is made as a whole."""
    host = inner(SERVER, CLIENT)
    host.effects.hang = call

    async def cut() -> None:
        with trio.move_on_after(1):
            await host.reconciler.reconcile()

    trio.run(cut, clock=trio.testing.MockClock(autojump_threshold=0))
    host.effects.hang = ""
    done = {call for call in host.effects.calls if call.startswith("open")}
    calls = host.run()
    assert any(one.startswith(call) for one in calls)
    assert not done & set(calls)
    assert host.reconciler.have == host.reconciler.want
    assert host.run() == []


@pytest.mark.parametrize("call", ["push /netns/3", "push", "door /netns/3", "route", "host ruleset"])
def test_a_step_that_hangs_is_left_and_the_others_are_done(call: str) -> None:
    """It is a fault like any other, and is tried again; the loop itself is not started again for it."""
    host = inner(SERVER, CLIENT)
    host.effects.hang = call

    async def look(hearts: Heartbeats) -> None:
        while True:
            await trio.sleep(hearts.look())

    async def script() -> None:
        hearts = Heartbeats()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, hearts)
            with Heartbeat(30.0, among=hearts) as beat:
                nursery.start_soon(partial(host.reconciler.run, beat))
                await beat.sleep(25)
                causes = [fault.cause for fault in host.faults.list().values()]
                assert all("showed no progress for 18 s" in cause for cause in causes)
                assert causes
                assert any(one.startswith("zone") for one in host.effects.calls)
                host.effects.hang = ""
                await beat.sleep(60)
                assert host.reconciler.have == host.reconciler.want
                assert host.faults.current == {}
            nursery.cancel_scope.cancel()

    trio.run(script, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_loop_that_is_run_again_tries_what_waited_for_something() -> None:
    """Its waiters ended with it, so that nobody would say that it is due."""
    host = Host(SERVER, CLIENT)
    host.effects.fail["push /netns/3"] = NotYetError("not there", trio.sleep_forever)

    async def script() -> None:
        for _ in range(2):
            with trio.move_on_after(1):
                await host.reconciler.run()
        assert host.effects.calls.count("push /netns/3") == 2
        host.effects.fail.clear()
        with trio.move_on_after(1):
            await host.reconciler.run()

    trio.run(script, clock=trio.testing.MockClock(autojump_threshold=0))
    assert host.reconciler.have == host.reconciler.want
