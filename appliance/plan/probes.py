"""Which ports of containers to look up, to learn where their programs take connections and datagrams."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from appliance.model.facts import Probe, RunState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Address

    from appliance.plan.containers import MeshContainer


_ALIVE = (RunState.RUNNING, RunState.PAUSED)
"""The kernel answers for a program that stands still."""


def probes(
    containers: Iterable[MeshContainer], reached: Mapping[str, IPv4Address] = MappingProxyType({})
) -> frozenset[Probe]:
    """Return what containers declare that run, or are paused: a program may stop listening and begin again.

    The address at which the host reaches one (`reached`, by Docker id) comes first, as backends have it.
    A container that has not started is left out: its program does not run, and its addresses may not be there.
    """
    return frozenset(
        Probe(
            w.id,
            w.netns.id,
            w.netns.path,
            w.started_at,
            _beginning_with(reached.get(w.id), w.addresses),
            tuple(sorted({(port.protocol, port.container) for port in container.declared.ports})),
            w.own_rules,
        )
        for container in containers
        if (w := container.workload).state in _ALIVE and w.started_at
        if w.netns is not None and w.addresses and container.declared.ports
    )


def _beginning_with(first: IPv4Address | None, addresses: tuple[IPv4Address, ...]) -> tuple[IPv4Address, ...]:
    return (first, *(a for a in addresses if a != first)) if first in addresses and first is not None else addresses
