"""What every container of this host may reach, and what the host needs names, ports and listeners for.

`Reaches` remembers the last pass: a container is computed anew only when a change concerns it. The rule itself, which
knows no memory, is `policy.reach`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.plan.policy import Catalogue, Reach, catalogue, may_reach, reach
from appliance.plan.turns import in_turns, reused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from appliance.model.facts import Snapshot
    from appliance.model.names import Allowance, Destination, Name
    from appliance.plan.containers import MeshContainer
    from appliance.plan.turns import Turns
    from appliance.plan.visitors import VisitorGroup


class Reaches:
    """Computes reaches for one snapshot after another."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        """What was declared in the last snapshot."""
        self._former: dict[str, tuple[MeshContainer, Reach]] = {}

    def of(
        self, s: Snapshot, containers: tuple[MeshContainer, ...], remote: frozenset[Destination]
    ) -> Turns[dict[str, Reach]]:
        """Return each container's reach by its Docker id; `remote` is what other machines serve."""
        before = self.catalogue
        after = catalogue(s.specs, (c.declared for c in containers), remote)
        after = Catalogue(
            destinations=reused(before.destinations, after.destinations),
            services=reused(before.services, after.services),
        )
        changed = {
            name
            for name in before.destinations.keys() | after.destinations.keys()
            if before.destinations.get(name) is not after.destinations.get(name)
        }

        def current(container: MeshContainer) -> Reach:
            declared = container.declared
            service = declared.name.service
            former, known = self._former.get(container.workload.id, (None, Reach()))
            if (
                former is None
                or former.declared != declared
                or before.services.get(service) is not after.services.get(service)
            ):
                return reach(after, service, declared.connect_to)
            concerned = known.names & changed
            return _updated(known, before, after, concerned, service, declared.connect_to) if concerned else known

        found = yield from in_turns(current, containers)
        self.catalogue = after
        self._former = {c.workload.id: (c, known) for c, known in zip(containers, found, strict=True)}
        return {c.workload.id: known for c, known in zip(containers, found, strict=True)}


def _updated(
    known: Reach,
    before: Catalogue,
    after: Catalogue,
    changed: frozenset[Name],
    service: str,
    connect_to: Iterable[Allowance],
) -> Reach:
    """Return what `reach` returns in `after`, made from what it returned in `before`.

    `changed` are those of the reachable names whose destinations differ; no other name is visited. The container's
    allowances and the names of its own service must be the same as before.
    """
    services = {name.service for name in changed}
    concerned = [a for a in connect_to if a.name.service in services]  # comparing text is far faster than names
    gone = [d for name in changed for d in before.destinations.get(name, ())]
    come = [d for name in changed for d in after.destinations.get(name, ()) if may_reach(service, concerned, d)]
    return Reach(known.destinations.difference(gone).union(come), known.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What this host must have names, ports and listeners for."""

    names: AbstractSet[Name]
    """Every name that anybody declared or may reach: each needs a virtual IP."""
    destinations: AbstractSet[Destination]
    """What is offered here or reached from here: each needs a proxy port."""
    offered: AbstractSet[Destination]
    """What containers of this host offer: other machines may call it here."""
    closed: frozenset[Destination]
    """What only ended containers offer or reach. It keeps its port, and has no listener."""


def demand(
    containers: tuple[MeshContainer, ...],
    reaches: Mapping[str, Reach],
    visitors: tuple[VisitorGroup, ...],
    known: Catalogue,
) -> Turns[Demand]:
    """Return what these containers and visitors need."""
    names: set[Name] = set(known.destinations)
    used: set[Destination] = set()
    offered: set[Destination] = set()
    idle: set[Destination] = set()

    def add(container: MeshContainer) -> None:
        offers = [destination for destination, _ in container.offers]
        reached = reaches[container.workload.id]
        names.update(reached.names)
        offered.update(offers)
        concerned = idle if container.ended else used
        concerned.update(reached.destinations, offers)

    yield from in_turns(add, containers)
    for group in visitors:
        names |= group.reach.names
        used |= group.reach.destinations
    return Demand(names=names, destinations=used | idle, offered=offered, closed=frozenset(idle - used))
