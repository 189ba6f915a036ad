"""Steps on a host whose containers come and go meanwhile."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
import trio

from appliance.control.doors import Doors
from appliance.control.effects import HostEffects
from appliance.drivers.netns import identity, netlink, routes
from appliance.drivers.nft.drift import RulesetWatch
from appliance.errors import NotYetError, RetryError
from appliance.model.names import Destination
from appliance.model.network import Listener, Netns, NetnsId, VipRoute, WorkloadDoor, WorkloadRuleset
from appliance.model.state import AddRoute, CloseDoor, CloseListener, DropRoute, DropRuleset, OpenDoor, PushRuleset
from appliance.render.ruleset import LEAD_DNS, LEAVE_DNS, REMOVE, render_workload

WEB, OTHER = map(Destination.parse, ("web.web:80", "other.web:80"))


class RefusingNft:
    """Refuses every push, after `before` was done."""

    def __init__(self, before=lambda: None):
        self.before = before
        self.pushed = []

    async def push(self, path, text):
        self.pushed.append((path, text))
        self.before()
        await trio.lowlevel.checkpoint()
        raise RetryError("reassociate to namespace failed")


@pytest.fixture
def netns(tmp_path):
    """A file that leads to a namespace."""
    path = tmp_path / "netns"
    path.symlink_to(identity.HOST)
    found = identity.identify(str(path))
    assert found is not None
    return Netns(id=found, path=str(path))


def ruleset(netns):
    """Return the least that a namespace may have."""
    return WorkloadRuleset(
        netns=netns,
        proxy=IPv4Address("172.18.0.1"),
        dns_port=53,
        vip_range=IPv4Network("240.0.0.0/4"),
        proxy_ports=(20000, 29999),
    )


def drop(netns, nft):
    """Carry out the step."""
    watch = RulesetWatch(on_drift=lambda _: None)
    doors = Doors(None)
    effects = HostEffects(plane=None, doors=doors, nft=nft, nft_helper=None, watch=watch, registry=None)
    trio.run(effects.carry_out, DropRuleset(ruleset=ruleset(netns)))


def test_namespace_that_goes_while_its_table_is_removed_is_no_fault(netns, tmp_path):
    """Docker may unmount it at any time; then there is nothing left to remove, and nothing to report."""
    nft = RefusingNft(before=(tmp_path / "netns").unlink)
    drop(netns, nft)
    assert nft.pushed == [(netns.path, REMOVE)]


def test_refusal_in_a_namespace_that_is_there_is_one(netns):
    """The step is to be tried again."""
    with pytest.raises(RetryError):
        drop(netns, RefusingNft())


def test_table_of_another_namespace_at_that_path_is_left_alone(netns):
    """Docker uses paths again: what leads elsewhere by now is not ours to clear."""
    nft = RefusingNft()
    gone = Netns(id=NetnsId(device=netns.id.device, inode=netns.id.inode + 1), path=netns.path)
    drop(gone, nft)
    assert nft.pushed == []


def carry_out(monkeypatch, step, **calls):
    """Carry out a step that asks no more of the host than these functions of drivers/netns, which return as said.

    Return what was called with which arguments.
    """
    called = []

    def fake(name, result):
        async def call(*args, **_):
            called.append((name, *args))
            return result

        return call

    for name, result in calls.items():
        monkeypatch.setattr(routes, name, fake(name, result))
    watch = RulesetWatch(on_drift=lambda _: None)
    effects = HostEffects(plane=None, doors=Doors(None), nft=None, nft_helper=None, watch=watch, registry=None)
    trio.run(effects.carry_out, step)
    return called


def test_route_waits_for_the_interface_that_it_leads_to(netns, monkeypatch):
    """The step itself does not wait: it says what is missing, and how to wait for that."""
    route = VipRoute(netns=netns, vip_range=IPv4Network("240.0.0.0/4"), gateway=IPv4Address("172.18.0.1"))
    add = AddRoute(before=None, after=route)
    with pytest.raises(NotYetError) as caught:
        carry_out(monkeypatch, add, wait_neighbour=False)
    assert caught.value.wait.args == (netns.path, route.gateway)
    called = carry_out(monkeypatch, add, wait_neighbour=True, add_route=True)
    assert called[-1] == ("add_route", netns.path, route.vip_range, route.gateway)


def test_route_goes_while_its_namespace_is_there(netns, tmp_path, monkeypatch):
    """With the namespace it has gone already."""
    route = VipRoute(netns=netns, vip_range=IPv4Network("240.0.0.0/4"), gateway=IPv4Address("172.18.0.1"))
    drop = DropRoute(route=route)
    (called,) = carry_out(monkeypatch, drop, drop_route=None)
    assert called == ("drop_route", netns.path, route.vip_range, route.gateway)
    (tmp_path / "netns").unlink()
    assert carry_out(monkeypatch, drop, drop_route=None) == []


@pytest.mark.parametrize(("door", "led"), [(False, True), (True, False)])
def test_first_rules_without_a_door_undo_what_a_former_appliance_led_there(netns, monkeypatch, door, led):
    """Before they are in force: without rules for a door, the workload's own programs would get what is dialled."""
    nft = RefusingNft()
    effects = HostEffects(plane=None, doors=Doors(None), nft=nft, nft_helper=None, watch=None, registry=None)
    undone = []

    async def drop_local_route(*args):
        assert nft.pushed == []
        undone.append(args)

    monkeypatch.setattr(routes, "drop_local_route", drop_local_route)
    rules = replace(ruleset(netns), door=door)
    for before in (replace(rules, dns_port=54), None):
        nft.pushed.clear()
        with pytest.raises(RetryError):
            trio.run(effects.carry_out, PushRuleset(before=before, after=rules))
        assert len(nft.pushed) == 1
    assert undone == ([(netns.path, rules.vip_range)] if led else [])


class ClosingPlane:
    """Closes doors, after which a test sees what was pushed before."""

    def __init__(self, nft):
        self.nft = nft
        self.closed = []

    def close_door(self, netns):
        assert self.nft.pushed == [], "a program of the workload would get what is led there"
        self.closed.append(netns)


@pytest.mark.parametrize("kind", ["drop", "push"])
@pytest.mark.parametrize("known", [False, True])
def test_rules_without_a_door_close_one_that_was_forgotten(netns, monkeypatch, kind, known):
    """When it could not be led to, or somebody changed its rules, no step closes it any more."""
    rules = ruleset(netns)
    nft = RefusingNft()
    plane = ClosingPlane(nft)
    doors = Doors(plane)
    door = WorkloadDoor(netns=netns, address=IPv4Address("172.18.0.3"), vip_range=rules.vip_range)
    doors.opened[netns.id] = door
    watch = RulesetWatch(on_drift=lambda _: None)
    effects = HostEffects(plane=plane, doors=doors, nft=nft, nft_helper=None, watch=watch, registry=None)
    undone = []

    async def drop_local_route(*args):
        assert plane.closed == []
        undone.append(args)

    monkeypatch.setattr(routes, "drop_local_route", drop_local_route)
    before = replace(rules, door=True) if known else None
    step = DropRuleset(ruleset=rules) if kind == "drop" else PushRuleset(before=before, after=rules)
    with pytest.raises(RetryError):
        trio.run(effects.carry_out, step)
    assert (undone, plane.closed, doors.opened) == ([(netns.path, rules.vip_range)], [netns.id], {})
    assert len(nft.pushed) == 1


class DataPlane:
    """Has connections until they are ended, to what is still accepted and what is not."""

    def __init__(self):
        self.accepts, self.carries = {WEB}, {WEB, OTHER}

    def close_listener(self, destination):
        self.accepts.remove(destination)

    def end_pairs(self, destination):
        assert destination not in self.accepts, "more may come"
        self.carries.remove(destination)


def test_a_listener_that_closes_ends_its_connections():
    """Nobody may reach it any more, so nobody goes on with what was allowed; others' connections stay."""
    plane = DataPlane()
    watch = RulesetWatch(on_drift=lambda _: None)
    effects = HostEffects(plane=plane, doors=None, nft=None, nft_helper=None, watch=watch, registry=None)
    trio.run(effects.carry_out, CloseListener(listener=Listener(destination=WEB, port=20000)))
    assert (plane.accepts, plane.carries) == (set(), {OTHER})


class Steps:
    """What a step does to rules and doors, in its order; `refuses` is what nft does not take."""

    def __init__(self, netns, monkeypatch, refuses=()):
        self.done = []
        self.refuses = refuses
        self.doors = Doors(self)
        self.door = WorkloadDoor(netns=netns, address=IPv4Address("172.18.0.3"), vip_range=IPv4Network("240.0.0.0/4"))
        watch = RulesetWatch(on_drift=lambda _: None)
        self.effects = HostEffects(plane=self, doors=self.doors, nft=self, nft_helper=None, watch=watch, registry=None)
        monkeypatch.setattr(self.doors, "open", self.note("door opens"))
        monkeypatch.setattr(self.doors, "close", self.note("door closes"))
        monkeypatch.setattr(self.doors, "clear", self.note("door closes"))
        monkeypatch.setattr(netlink, "entered", lambda *_: ())
        monkeypatch.setattr(watch, "add", lambda _: None)

    def note(self, what):
        async def call(*_):
            await trio.lowlevel.checkpoint()
            self.done.append(what)

        return call

    async def push(self, _path, text):
        await trio.lowlevel.checkpoint()
        self.done.append(text)
        if text in self.refuses:
            raise RetryError("No such file or directory")

    def open_dns_door(self, *_):
        self.done.append("DNS opens")

    def close_dns_door(self, _):
        self.done.append("DNS closes")

    def does(self, step):
        """Return what it does."""
        self.done.clear()
        trio.run(self.effects.carry_out, step)
        return list(self.done)


def test_questions_are_led_to_what_is_open(netns, monkeypatch):
    """There is no moment in which they go nowhere, whatever becomes of the rules meanwhile."""
    steps = Steps(netns, monkeypatch)
    rules = replace(ruleset(netns), door=True, address=steps.door.address)
    (text,) = steps.does(PushRuleset(before=None, after=rules))
    assert text == render_workload(rules)
    assert steps.does(OpenDoor(before=None, after=steps.door)) == ["door opens", "DNS opens", LEAD_DNS]
    (text,) = steps.does(PushRuleset(before=None, after=rules))
    assert text == render_workload(rules, dns_inside=True)
    assert steps.does(CloseDoor(door=steps.door)) == [LEAVE_DNS, "DNS closes", "door closes"]


@pytest.mark.parametrize("kind", ["drop", "push"])
def test_rules_that_go_leave_no_door_for_dns(netns, monkeypatch, kind):
    """Also where they are gone already, so that nothing can be changed in them."""
    steps = Steps(netns, monkeypatch, refuses=[LEAVE_DNS])
    steps.does(OpenDoor(before=None, after=steps.door))
    rules = ruleset(netns)
    step = PushRuleset(before=rules, after=rules) if kind == "push" else DropRuleset(ruleset=rules)
    assert steps.does(step)[:2] == [LEAVE_DNS, "DNS closes"]
    assert netns.id not in steps.doors.dns
