"""Which TCP ports of containers to ask about, to learn when their programs take connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.model.facts import Probe, RunState
from appliance.model.names import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.plan.containers import MeshContainer


_ALIVE = (RunState.RUNNING, RunState.PAUSED)
"""The kernel answers for a program that stands still."""


def probes(containers: Iterable[MeshContainer]) -> frozenset[Probe]:
    """Return the declared ports of containers that run, or are paused, which have not accepted yet.

    A container that has not started is left out: before its interface is up, a dial would hang until the kernel asks
    ARP again.
    """
    return frozenset(
        Probe(w.id, w.netns.id, w.addresses[0], port.container, w.netns.path)
        for container in containers
        if (w := container.workload).state in _ALIVE and w.started_at
        if w.netns is not None and w.addresses
        for port in container.declared.ports
        if port.protocol is Protocol.TCP and port.container not in w.accepting
    )
