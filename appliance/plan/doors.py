"""Which namespaces have a door, which need a route to virtual IPs, and as whom callers are seen behind a door.

Doors and routes follow from rulesets. Who calls has a key of its own (model/sources.py), and allocate.py an address for
each key.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from appliance.model.network import VipRoute, WorkloadDoor
from appliance.model.sources import (
    HOST_KEY,
    CallerSources,
    caller_step,
    guest_key,
    is_docker_name,
    machine_key,
    replica_key,
)
from appliance.plan.rulesets import peers
from appliance.plan.visitors import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address, IPv4Network

    from appliance.model.facts import Allocations, Snapshot, Workload
    from appliance.model.network import NetnsId, WorkloadRuleset
    from appliance.plan.containers import Group, MeshContainer


def doors(rulesets: Mapping[NetnsId, WorkloadRuleset]) -> dict[NetnsId, WorkloadDoor]:
    """Return the doors that these rules make room for. One needs the workload's address, which its callers have."""
    return {
        netns: WorkloadDoor(netns=r.netns, address=r.address, vip_range=r.vip_range, gateways=r.gateways)
        for netns, r in rulesets.items()
        if r.door and r.address is not None
    }


def routes(rulesets: Mapping[NetnsId, WorkloadRuleset]) -> dict[NetnsId, VipRoute]:
    """Return the routes of the namespaces that have no default route."""
    return {
        netns: VipRoute(netns=r.netns, vip_range=r.vip_range, gateway=r.proxy, gateways=r.gateways)
        for netns, r in rulesets.items()
        if r.internal
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Who may call backends of this host from inside their namespaces, by key."""

    addresses: Mapping[str, AbstractSet[IPv4Address]]
    """By which listeners know each; none of a container that does not run: it keeps what it has."""
    numbered: Mapping[str, str]
    """Docker's names of the containers that have no replica's number (Allocations.numbered)."""


def callers(s: Snapshot, containers: Iterable[MeshContainer], groups: tuple[Group, ...]) -> Callers:
    """Return the callers: machines, guests, this host, containers. Those that share a namespace are the first of them.

    Two containers of one replica are one caller, while one takes the other's place.
    """
    visitors = s.settings.visitors
    keys, numbered = _container_keys(containers, s.allocations.numbered)
    found: dict[str, AbstractSet[IPv4Address]] = {machine_key(a): {a} for a in peers(s)}
    found |= {guest_key(a): {a} for a in visitors.guests}
    if visitors.host is not None:
        found[HOST_KEY] = s.host_addresses | {LOOPBACK}
    found |= {key: frozenset() for key in keys.values()}
    for group in groups:
        key = keys[group.containers[0].workload.id]
        found[key] = found[key] | group.addresses
    return Callers(addresses=found, numbered=numbered)


def caller_sources(calling: Callers, allocations: Allocations, vip_range: IPv4Network) -> CallerSources:
    """Return from where the data plane dials for them. Of two with one address the container counts."""
    given = allocations.callers
    return CallerSources(
        step=caller_step(vip_range),
        addresses={a: given[key] for key, known in calling.addresses.items() if key in given for a in known},
    )


def _container_keys(
    containers: Iterable[MeshContainer], kept: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return each container's key, by Docker id; and which container each key is that has no replica's number.

    Those have the number that they had, by Docker's name, which outlives a restart and a container that is made anew;
    else the lowest that no container here has.
    """
    workloads = sorted((c.workload for c in containers), key=lambda w: (w.docker_name, w.id))
    created = [w for w in workloads if w.revision is not None]
    keys = {w.id: replica_key(w.name, w.replica) for w in created if w.replica is not None}
    taken = set(keys.values())
    had = {called: key for key, called in sorted(kept.items(), reverse=True)}
    numbered: dict[str, str] = {}
    waiting: list[Workload] = []

    def give(w: Workload, key: str) -> None:
        keys[w.id], numbered[key] = key, _called(w)
        taken.add(key)

    for w in [w for w in workloads if w.id not in keys]:
        key = had.get(_called(w), "")
        if key not in taken and key.rpartition("/")[0] == str(w.name):
            give(w, key)
        else:
            waiting.append(w)
    for w in waiting:
        give(w, next(key for number in count() if (key := replica_key(w.name, number)) not in taken))
    return keys, numbered


def _called(workload: Workload) -> str:
    return workload.docker_name if is_docker_name(workload.docker_name) else workload.id
