"""When a container may be sent connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.model.facts import RunState
from appliance.model.names import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.model.facts import Workload
    from appliance.model.names import Port


def serves(workload: Workload, port: Port) -> bool:
    """Whether it can take connections on this port.

    A TCP port must have accepted one since the container's start; a UDP port cannot be asked.
    """
    return (
        workload.state is RunState.RUNNING
        and workload.healthy is not False
        and (port.protocol is Protocol.UDP or port.container in workload.accepting)
    )


def is_ready(workload: Workload, ports: Iterable[Port]) -> bool:
    """Whether it runs, is healthy, and serves every port."""
    return missing(workload, ports) is None


def missing(workload: Workload, ports: Iterable[Port]) -> str | None:
    """Return what it lacks to be ready, in words for its owner, or None."""
    if workload.problem is not None:
        return workload.problem
    if workload.state is not RunState.RUNNING:
        code = f" with exit code {workload.exit_code}" if workload.exit_code else ""
        return f"{workload.state}{code}"
    waiting = [p for p in ports if p.protocol is Protocol.TCP and p.container not in workload.accepting]
    if waiting:
        return f"waiting for port {waiting[0].container}"
    if workload.healthy is False:
        return "waiting for its health check"
    return None
