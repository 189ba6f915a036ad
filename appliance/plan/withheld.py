"""What must wait while something else is not in place: names for rules, announcements for listeners, rules for doors.

Pure rules about a state in which some steps have failed; the loop asks them before it takes a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from appliance.model import state as st

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from appliance.model.facts import Workload
    from appliance.model.network import NetnsId, Zone


def zone_without(
    zone: Zone,
    former: Zone | None,
    workloads: Iterable[Workload],
    unlocked: AbstractSet[NetnsId],
    standing: AbstractSet[NetnsId],
) -> Zone:
    """Leave out the views of workloads in `unlocked` namespaces, whose rules are not in place: no name works there yet.

    In those that are `standing` too, the rules before a refused change are in force: names of the `former` zone that
    are still allowed stay.
    """
    if not unlocked:
        return zone
    seen = {} if former is None else former.views
    views = dict(zone.views)
    for workload in workloads:
        if workload.netns is not None and workload.netns.id in unlocked:
            for address in workload.addresses:
                view = views.pop(address, frozenset())
                if workload.netns.id in standing and address in seen:
                    views[address] = seen[address] & view
    return replace(zone, views=views)


def must_wait(step: st.Step, have: st.HostState) -> bool:
    """Whether something that the step builds upon is not in place, or something is that it would take away from.

    Nothing is announced that does not listen: other machines are sent to it. Doors and routes stand in rules, so that
    a program of the workload never gets what is dialled there, and nothing leaves the namespace unseen. A new door
    waits for the route of its namespace too: what leads to the door would pass for that route, which is then not added.
    """
    match step:
        case st.Register():
            return step.registration.destination not in have.listeners
        case st.AddRoute():
            return step.after.netns.id not in have.rulesets
        case st.OpenDoor():
            netns = step.after.netns.id
            rules = have.rulesets.get(netns)
            return (
                rules is None or not rules.door or (rules.internal and step.before is None and netns not in have.routes)
            )
        case st.PushRuleset():
            return not step.after.door and step.after.netns.id in have.doors
        case st.DropRuleset():
            return step.ruleset.netns.id in have.doors or step.ruleset.netns.id in have.routes
        case _:
            return False
