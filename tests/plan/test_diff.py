"""Steps between two states: complete, minimal, and in an order without holes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given

from appliance.model import state as st
from appliance.model.facts import Attachment
from appliance.model.network import Listener
from appliance.plan.compile import compile_host
from appliance.plan.diff import apply, diff
from tests.plan.cases import BRIDGE, BRIDGES, MEMBERS, SETTINGS, address, container, dest, snapshot, snapshots

NOTHING = st.HostState()
SERVER = container(2, "apple.orange", ports=(80,))
CLIENT = container(3, "flask.flask", to=("apple.orange:80",))
APPLE = dest("apple.orange:80")
HOST_ON_X = IPv4Address("172.31.0.1")


def state(*workloads, before=NOTHING, **fields):
    """What a host with these containers should have, after `before`."""
    return compile_host(snapshot(*workloads, allocations=before.allocations, **fields))


def kinds(steps) -> list[str]:
    """The names of the steps, repetitions left out."""
    found = [type(s).__name__ for s in steps]
    return [kind for kind, before in zip(found, [None, *found], strict=False) if kind != before]


@given(snapshots(), snapshots())
def test_apply_diff_leads_there(a, b):
    """Whatever the two states, the steps lead from one to the other; there is nothing to do between equals."""
    have, want = compile_host(a), compile_host(b)
    assert apply(diff(have, want), have) == want
    assert apply(diff(NOTHING, want), NOTHING) == want
    assert diff(want, want) == ()
    assert diff(want, compile_host(b)) == ()


@given(snapshots(), snapshots())
def test_no_hole_and_no_early_announcement(a, b):
    """After every single step: routes lead to open listeners that let them in, and what is announced is served.

    In a new namespace that is so by the time at which names work there: its rules come first of all. Doors and routes
    stand in rules, and nothing waits for a door. Who is let in is seen by its own address.
    """
    have = compile_host(a)
    old = have.rulesets.keys()
    want = compile_host(replace(b, settings=a.settings, unusable_ports=a.unusable_ports, allocations=have.allocations))
    gone = have.listeners.keys() - want.listeners.keys()
    opening, before = False, have
    for step in diff(have, want):
        opened = isinstance(step, st.OpenDoor) and step.before is None
        opening = opening or opened
        assert opening == opened
        have = apply([step], have)
        by_port = {listener.port: listener for listener in have.listeners.values()}
        assert len(by_port) == len(have.listeners)
        for netns, ruleset in have.rulesets.items():
            if ruleset == want.rulesets.get(netns) and (netns in old or have.zone == want.zone):
                assert {r.proxy_port for r in ruleset.routes} <= by_port.keys()
        assert all(have.rulesets[netns].door for netns in have.doors)
        assert have.routes.keys() <= have.rulesets.keys()
        assert set(have.registrations) <= set(have.listeners)
        assert have.bridge_ruleset in {before.bridge_ruleset, want.bridge_ruleset}
        if isinstance(step, st.CloseListener):
            assert step.listener.destination in gone
        if isinstance(step, st.OpenListener):
            assert (step.listener.destination.protocol, step.listener.port) in have.host_ruleset.listening
        if isinstance(step, st.OpenListener | st.SwapListener):
            now = step.listener if isinstance(step, st.OpenListener) else step.after
            assert now == want.listeners[now.destination]
            assert have.sources == want.sources


@given(snapshots(), snapshots())
def test_a_swap_never_moves_a_listener(a, b):
    """The data plane relies on it: a swap keeps the port, and only a destination that is closed is opened."""
    have, want = compile_host(a), compile_host(b)
    for step in diff(have, want):
        if isinstance(step, st.SwapListener):
            assert have.listeners[step.after.destination].port == step.before.port == step.after.port
        if isinstance(step, st.OpenListener):
            assert step.listener.destination not in have.listeners
        have = apply([step], have)


def test_a_door_that_moves_is_let_in_at_every_step():
    """A workload leaves the network of the address by which listeners know what comes through its door."""
    away = Attachment(network="zzz", address=IPv4Address("172.31.0.9"), gateway=HOST_ON_X)
    both = replace(CLIENT, attachments=(*CLIENT.attachments, away))
    have = state(SERVER, both)
    want = state(SERVER, replace(CLIENT, attachments=(away,)), before=have)
    netns = CLIENT.netns.id
    steps = diff(have, want)
    order = kinds(steps)
    assert order.index("OpenDoor") < order.index("SetZone") < order.index("SwapListener")
    for step in steps:
        have = apply([step], have)
        assert have.doors[netns].address in have.listeners[APPLE].callers
        assert have.doors[netns].address in have.zone.views, "its questions are answered"
    assert have.doors[netns].address == IPv4Address("172.31.0.9")


def test_from_nothing():
    """Nothing is named before its rules, and nothing is announced before it works."""
    assert kinds(diff(NOTHING, state(SERVER, CLIENT))) == [
        "KeepAllocations",
        "SetSources",
        "PushHostRuleset",
        "PushBridgeRuleset",
        "OpenListener",
        "PushRuleset",
        "SetDnsAddresses",
        "SetZone",
        "Register",
        "OpenDoor",
    ]


def test_everything_goes():
    """Removal is the reverse: announcement, name, rules, and the listener last. A new namespace does not wait."""
    have = state(SERVER, CLIENT)
    other = state(container(4, "x.x"), before=have)
    assert kinds(diff(have, other)) == [
        "PushRuleset",
        "KeepAllocations",
        "SetSources",
        "Deregister",
        "SetZone",
        "PushHostRuleset",
        "CloseDoor",
        "DropRuleset",
        "SetZone",
        "CloseListener",
        "OpenDoor",
    ]


def test_only_removal_sets_the_zone_once():
    """When names only go, the zone changes once, early."""
    have = state(SERVER, CLIENT)
    steps = diff(have, state(SERVER, before=have))
    zone_first = ["KeepAllocations", "SetSources", "SetZone", "SwapListener", "PushHostRuleset"]
    assert kinds(steps) == [*zone_first, "CloseDoor", "DropRuleset"]


def test_removed_allowance_is_refused_by_the_proxy_first():
    """From the swap on the proxy resets it, whatever becomes of its ruleset."""
    have = state(SERVER, CLIENT)
    want = state(SERVER, container(3, "flask.flask"), before=have)
    steps = diff(have, want)
    assert kinds(steps) == ["SetZone", "SwapListener", "PushRuleset"]
    assert steps[1].after.callers == {address(2)}


def test_added_allowance_is_let_in_before_its_rules_lead_there():
    """The listener knows the new caller before any packet of its can come."""
    have = state(SERVER, container(3, "flask.flask"))
    assert kinds(diff(have, state(SERVER, CLIENT, before=have))) == ["SwapListener", "PushRuleset", "SetZone"]


def test_new_namespaces_come_first():
    """Of several rulesets, those of containers whose programs are about to start."""
    have = state(SERVER, container(3, "flask.flask"))
    steps = diff(have, state(SERVER, CLIENT, container(9, "new.new"), before=have))
    pushes = [s.after.netns.id.inode for s in steps if isinstance(s, st.PushRuleset)]
    assert pushes == [9, 3]


def test_port_that_is_needed_again_is_closed_first():
    """Two listeners never ask for one port at the same time, also when one takes over the other's."""
    first = Listener(destination=APPLE, port=20001)
    other = Listener(destination=dest("pear.orange:80"), port=20001)
    have, want = st.HostState(listeners={APPLE: first}), st.HostState(listeners={other.destination: other})
    assert diff(have, want) == (st.CloseListener(listener=first), st.OpenListener(listener=other))
    moved = replace(first, port=20002)
    assert diff(have, st.HostState(listeners={APPLE: moved})) == (
        st.CloseListener(listener=first),
        st.OpenListener(listener=moved),
    )


def test_announcement_of_a_moved_port_is_withdrawn_first():
    """Other machines must not be sent to a port that is not served any more; a new weight needs no withdrawal."""
    have = state(SERVER)
    port = have.allocations.ports[APPLE]
    steps = diff(have, state(SERVER, before=have, unusable_ports=frozenset({port})))
    assert kinds(steps) == [
        "KeepAllocations",
        "Deregister",
        "PushHostRuleset",
        "CloseListener",
        "OpenListener",
        "PushRuleset",
        "Register",
    ]
    two = state(SERVER, container(4, "apple.orange", ports=(80,)), before=have)
    assert "Deregister" not in kinds(diff(have, two))


def test_backend_change_is_two_steps():
    """A container that becomes unready costs a swap and a new announcement, and touches no ruleset."""
    two = container(4, "apple.orange", ports=(80,))
    have = state(SERVER, two, CLIENT)
    steps = diff(have, state(SERVER, replace(two, healthy=False), CLIENT, before=have))
    assert kinds(steps) == ["SwapListener", "Register"]


def test_unknown_rulesets_are_pushed_in_full():
    """What was forgotten because somebody else changed it comes back."""
    want = state(SERVER, CLIENT)
    have = replace(want, rulesets={k: v for k, v in want.rulesets.items() if k.inode != 3}, host_ruleset=None)
    (host, push) = diff(have, want)
    assert host.before is None
    assert push.before is None
    assert push.after.netns.id.inode == 3


def test_address_that_changes_hands():
    """A stopped container's address is let out of the listener before names work for its new owner."""
    have = state(SERVER, CLIENT)
    heir = container(5, "x.x", attachments=CLIENT.attachments)
    steps = diff(have, state(SERVER, heir, before=have))
    order = kinds(steps)
    assert order[0] == "PushRuleset"
    assert order.index("SwapListener") < len(order) - order[::-1].index("SetZone") - 1
    swap = next(s for s in steps if isinstance(s, st.SwapListener))
    assert IPv4Address(address(3)) not in swap.after.callers


def test_door_follows_its_networks():
    """It is opened again when the addresses of this host change in its namespace, and stays open otherwise."""
    have = state(SERVER, CLIENT)
    (before,) = (door for door in have.doors.values() if door.netns == CLIENT.netns)
    joined = replace(
        CLIENT, attachments=(*CLIENT.attachments, Attachment(network="x", address=None, gateway=HOST_ON_X))
    )
    steps = diff(have, state(SERVER, joined, before=have))
    after = replace(before, gateways=before.gateways | {HOST_ON_X})
    assert kinds(steps) == ["OpenDoor", "PushHostRuleset", "PushRuleset", "SetDnsAddresses"]
    assert steps[0] == st.OpenDoor(before=before, after=after)
    assert "OpenDoor" not in kinds(diff(have, state(SERVER, container(3, "flask.flask"), before=have)))


def test_route_comes_right_after_its_rules_and_goes_before_them():
    """Nothing of the workload's leaves its namespace for a virtual IP unseen; no name works before the route."""
    inner = (replace(BRIDGE, internal=True),)
    want = state(SERVER, CLIENT, networks=inner)
    order = kinds(diff(NOTHING, want))
    assert order[order.index("PushRuleset") :] == [
        "PushRuleset",
        "AddRoute",
        "SetDnsAddresses",
        "SetZone",
        "Register",
        "OpenDoor",
    ]
    order = kinds(diff(want, state(before=want, networks=inner)))
    assert order[order.index("CloseDoor") :][:3] == ["CloseDoor", "DropRoute", "DropRuleset"]
    assert "DropRoute" in kinds(diff(want, state(SERVER, CLIENT, before=want)))


def test_door_without_room_is_closed_before_its_rules_go():
    """A program of the workload would get what is led there."""
    have = state(SERVER, CLIENT)
    want = state(SERVER, CLIENT, before=have, settings=replace(SETTINGS, doors=False))
    assert kinds(diff(have, want)) == ["CloseDoor", "PushRuleset"]


def test_suffix_change_sets_the_zone():
    """A zone that differs in nothing but its suffix is set too, once."""
    have = state(CLIENT)
    steps = diff(have, state(CLIENT, before=have, settings=replace(SETTINGS, suffix="a.b")))
    assert kinds(steps) == ["SetZone"]


def test_port_claims_stand_before_anything_is_served_and_go_with_the_last_container():
    """Drift is pushed in full, what did not change is left alone, and nobody on a plain host is held to anything."""
    claims = {"members": MEMBERS[:2], "bridges": BRIDGES}
    want = state(SERVER, CLIENT, **claims)
    assert want.bridge_ruleset is not None
    order = kinds(diff(NOTHING, want))
    assert order.index("PushBridgeRuleset") < order.index("OpenListener")
    forgotten = replace(want, bridge_ruleset=None)
    assert diff(forgotten, want) == (st.PushBridgeRuleset(before=None, after=want.bridge_ruleset),)
    more = state(SERVER, CLIENT, before=want, members=MEMBERS[:3], bridges=BRIDGES)
    assert diff(want, more) == (st.PushBridgeRuleset(before=want.bridge_ruleset, after=more.bridge_ruleset),)
    assert "DropBridgeRuleset" in kinds(diff(want, state(before=want, **claims)))
    assert "DropBridgeRuleset" not in kinds(diff(state(**claims), state(**claims)))
