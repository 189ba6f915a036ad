"""The progress of replicas that other machines run, as seen from here.

The placement tells which replicas another machine runs. Its announcements tell which of them are ready: the number of
ready containers by revision, for each port. A container without ports is not announced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.model.names import Destination, Name
from appliance.model.rollout import Progress, ReplicaKey
from appliance.plan.replicas.placement import placement
from appliance.plan.replicas.rollout import revision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.model.facts import Endpoint, Snapshot
    from appliance.model.spec import Container, Service

UNSEEN = "placed there; without ports it announces nothing"
"""The state of a replica that cannot be seen from here. A deploy does not wait for it."""


def elsewhere(s: Snapshot, services: Iterable[str]) -> tuple[Progress, ...]:
    """Return the progress of each container of these services that another machine runs.

    `s.endpoints` must have what other machines serve of these services. A machine announces how many of its replicas
    are ready, not which: they are taken to be its first ones.
    """
    found = []
    for service in (s.specs[name] for name in sorted(set(services)) if name in s.specs):
        placed = placement(service, s.settings, s.machines)
        for node in sorted(set(placed) - {s.settings.node}):
            replicas = [number for number, owner in enumerate(placed) if owner == node]
            for c in service.containers:
                ready, others = _announced(s.endpoints, service, c, node)
                for number, replica in enumerate(replicas):
                    done = ready is None or number < ready
                    state = UNSEEN if ready is None else "ready" if done else _awaited(node, others)
                    key = ReplicaKey(service=service.name, replica=replica, container=c.name)
                    found.append(Progress(key=key, state=state, ready=done, machine=node))
    return tuple(found)


def _awaited(node: str, others: int) -> str:
    return f"old revision serves on {node}" if others else f"waiting for {node} to announce it"


def _announced(
    endpoints: Iterable[Endpoint], service: Service, container: Container, node: str
) -> tuple[int | None, int]:
    """Return how many containers of the wanted revision are ready on all their ports, and how many of others.

    The first is None for a container without ports.
    """
    if not container.ports:
        return None, 0
    name = Name(service=service.name, container=container.name)
    announced = {e.destination: dict(e.revisions) for e in endpoints if e.node == node and e.destination.name == name}
    wanted = revision(container)
    of_ports = [
        announced.get(Destination(name=name, port=port.mesh, protocol=port.protocol), {}) for port in container.ports
    ]
    others = max(sum(count for found, count in one.items() if found != wanted) for one in of_ports)
    return min(one.get(wanted, 0) for one in of_ports), others
