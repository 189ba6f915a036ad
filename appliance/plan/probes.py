"""Which ports of containers to look up, to learn where their programs take connections and datagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.model.facts import Probe, RunState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.plan.containers import MeshContainer


_ALIVE = (RunState.RUNNING, RunState.PAUSED)
"""The kernel answers for a program that stands still."""


def probes(containers: Iterable[MeshContainer]) -> frozenset[Probe]:
    """Return what containers declare that run, or are paused: a program may stop listening and begin again.

    A container that has not started is left out: its program does not run, and its addresses may not be there.
    """
    return frozenset(
        Probe(
            w.id,
            w.netns.id,
            w.netns.path,
            w.started_at,
            w.addresses,
            tuple(sorted({(port.protocol, port.container) for port in container.declared.ports})),
            w.own_rules,
        )
        for container in containers
        if (w := container.workload).state in _ALIVE and w.started_at
        if w.netns is not None and w.addresses and container.declared.ports
    )
