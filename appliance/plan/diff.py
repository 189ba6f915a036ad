"""From what this host has to what it should have: ordered steps, and what they lead to.

The order, and why:

 0. New namespaces get their rules before everything else: their programs are about to start, and until then nothing
    that these rules lead to is missed. Where nothing is in place yet, after a start of the appliance, they wait for
    their place under 5: then their programs run, and what they dial is to be served first.
 1. Allocations go to disk before anything uses them. Then callers have their addresses, before they may call.
 2. Doors move: the workload got another address, by which listeners know already what comes through its door, and
    the zone who asks there. Then what is no longer served is deregistered, and names that go leave the zone: nobody is
    sent there any more.
 3. Listeners swap. A caller that was added is let in before its rules lead it here; one that was removed is
    reset from this moment on. That comes before its ruleset changes, although its next connection may then be
    accepted and reset for some milliseconds instead of being refused: a stopped container's address can belong to a
    new one whose namespace has no rules yet, and then the list of callers is all that keeps that one out.
 4. The host's ruleset and that of its bridges, then new listeners open, which strangers are kept from by then.
 5. Doors that go are closed while their rules still stand: without these a program of the workload would get what is
    led to the door. Then the workloads' rulesets, and where a namespace needs it its route to virtual IPs, which the
    rules have to meet first. Routes go before rules do.
 6. The DNS server listens, then the zone has the new names, then the registry the new announcements: nothing is
    announced before it works.
 7. Listeners that go are closed when no rule leads to them any more, and what is left of their pairs ends.
 8. New doors open last: each is a shorter way and not the only one, so nothing waits for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from appliance.model import state as st

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from appliance.model.network import Zone

_K = TypeVar("_K")
_V = TypeVar("_V")


def diff(have: st.HostState, want: st.HostState) -> tuple[st.Step, ...]:
    """Return the steps from `have` to `want`, in the order to apply them.

    There is no step back to having no host ruleset or no zone: the appliance ends with those, not its plans.
    """
    starting = [] if have.host_ruleset is None else _new_rulesets(have, want)
    steps: list[st.Step] = [*starting]
    if have.allocations != want.allocations:
        steps.append(st.KeepAllocations(allocations=want.allocations))
    if have.sources != want.sources:
        steps.append(st.SetSources(sources=want.sources))
    new_doors, moved_doors, _ = _compared(have.doors, want.doors)
    steps += [st.OpenDoor(before=before, after=after) for before, after in moved_doors]
    new, changed, gone = _compared(have.registrations, want.registrations)
    moved = [(before, after) for before, after in changed if before.proxy_port != after.proxy_port]
    steps += [st.Deregister(registration=r) for r in (*gone, *(before for before, _ in moved))]
    narrowed = _narrowed(have.zone, want.zone)
    if narrowed is not None and narrowed != have.zone:
        steps.append(st.SetZone(zone=narrowed))
    swapped, opened, closed = _listeners(have, want)
    steps += swapped
    if want.host_ruleset is not None and have.host_ruleset != want.host_ruleset:
        steps.append(st.PushHostRuleset(before=have.host_ruleset, after=want.host_ruleset))
    if want.bridge_ruleset is not None and have.bridge_ruleset != want.bridge_ruleset:
        steps.append(st.PushBridgeRuleset(before=have.bridge_ruleset, after=want.bridge_ruleset))
    elif want.bridge_ruleset is None and have.bridge_ruleset is not None:
        steps.append(st.DropBridgeRuleset())
    steps += opened
    steps += _namespaces(have, want, [] if starting else _new_rulesets(have, want))
    if have.dns_addresses != want.dns_addresses:
        steps.append(st.SetDnsAddresses(before=have.dns_addresses, after=want.dns_addresses))
    if want.zone is not None and narrowed != want.zone:
        steps.append(st.SetZone(zone=want.zone))
    steps += [st.Register(registration=r) for r in (*new, *(after for _, after in changed))]
    return (*steps, *closed, *(st.OpenDoor(before=None, after=after) for after in new_doors))


def apply(steps: Iterable[st.Step], state: st.HostState) -> st.HostState:  # noqa: C901, PLR0912 — one case per kind of step
    """Return the state after these steps."""
    listeners = dict(state.listeners)
    rulesets = dict(state.rulesets)
    doors = dict(state.doors)
    routes = dict(state.routes)
    registrations = dict(state.registrations)
    for step in steps:
        match step:
            case st.KeepAllocations():
                state = replace(state, allocations=step.allocations)
            case st.SetSources():
                state = replace(state, sources=step.sources)
            case st.OpenListener():
                listeners[step.listener.destination] = step.listener
            case st.SwapListener():
                listeners[step.after.destination] = step.after
            case st.CloseListener():
                listeners.pop(step.listener.destination, None)
            case st.PushHostRuleset():
                state = replace(state, host_ruleset=step.after)
            case st.PushBridgeRuleset():
                state = replace(state, bridge_ruleset=step.after)
            case st.DropBridgeRuleset():
                state = replace(state, bridge_ruleset=None)
            case st.PushRuleset():
                rulesets[step.after.netns.id] = step.after
            case st.DropRuleset():
                rulesets.pop(step.ruleset.netns.id, None)
            case st.AddRoute():
                routes[step.after.netns.id] = step.after
            case st.DropRoute():
                routes.pop(step.route.netns.id, None)
            case st.OpenDoor():
                doors[step.after.netns.id] = step.after
            case st.CloseDoor():
                doors.pop(step.door.netns.id, None)
            case st.SetDnsAddresses():
                state = replace(state, dns_addresses=step.after)
            case st.SetZone():
                state = replace(state, zone=step.zone)
            case st.Register():
                registrations[step.registration.destination] = step.registration
            case st.Deregister():
                registrations.pop(step.registration.destination, None)
    return replace(
        state, listeners=listeners, rulesets=rulesets, doors=doors, routes=routes, registrations=registrations
    )


def _compared(have: Mapping[_K, _V], want: Mapping[_K, _V]) -> tuple[list[_V], list[tuple[_V, _V]], list[_V]]:
    """Return what is new, what changed (before, after), and what is gone, each in the order of its map."""
    if have == want:  # far faster than the look-ups below
        return [], [], []
    new = [value for key, value in want.items() if key not in have]
    changed = [(have[key], value) for key, value in want.items() if key in have and have[key] != value]
    return new, changed, [value for key, value in have.items() if key not in want]


def _listeners(have: st.HostState, want: st.HostState) -> tuple[list[st.Step], list[st.Step], list[st.Step]]:
    """Return what to do before the host's ruleset (swap), after it (open), and last (close)."""
    new, changed, gone = _compared(have.listeners, want.listeners)
    moved = [(before, after) for before, after in changed if before.port != after.port]
    needed = {listener.port for listener in new} | {after.port for _, after in moved}
    # A port that is needed again, or a destination that moves to another port, cannot wait: closed before opened.
    early = [listener for listener in gone if listener.port in needed]
    opened: list[st.Step] = [st.CloseListener(listener=x) for x in (*early, *(before for before, _ in moved))]
    swapped: list[st.Step] = [st.SwapListener(before=b, after=a) for b, a in changed if b.port == a.port]
    opened += [st.OpenListener(listener=x) for x in (*new, *(after for _, after in moved))]
    return swapped, opened, [st.CloseListener(listener=x) for x in gone if x.port not in needed]


def _new_rulesets(have: st.HostState, want: st.HostState) -> list[st.Step]:
    new, _, _ = _compared(have.rulesets, want.rulesets)
    return [st.PushRuleset(before=None, after=after) for after in new]


def _namespaces(have: st.HostState, want: st.HostState, new_rulesets: list[st.Step]) -> list[st.Step]:
    """Return what changes inside workloads' namespaces, without the doors that open."""
    _, _, closed = _compared(have.doors, want.doors)
    steps: list[st.Step] = [st.CloseDoor(door=door) for door in closed]
    _, changed, gone = _compared(have.rulesets, want.rulesets)
    steps += new_rulesets
    steps += [st.PushRuleset(before=before, after=after) for before, after in changed]
    added, moved, dropped = _compared(have.routes, want.routes)
    steps += [st.AddRoute(before=None, after=after) for after in added]
    steps += [st.AddRoute(before=before, after=after) for before, after in moved]
    steps += [st.DropRoute(route=route) for route in dropped]
    return steps + [st.DropRuleset(ruleset=ruleset) for ruleset in gone]


def _narrowed(have: Zone | None, want: Zone | None) -> Zone | None:
    """Return what stays of the zone: names that keep their address, and views without what goes."""
    if have is None or want is None or have == want:
        return have
    return replace(
        have,
        names={name: a for name, a in have.names.items() if want.names.get(name) == a},
        views={
            asker: view if view == want.views[asker] else view & want.views[asker]
            for asker, view in have.views.items()
            if asker in want.views
        },
        askers={asker: name for asker, name in have.askers.items() if want.askers.get(asker) == name},
        sources=replace(
            want.sources,
            addresses={c: a for c, a in have.sources.addresses.items() if want.sources.addresses.get(c) == a},
        ),
    )
