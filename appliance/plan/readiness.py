"""When a container may be sent connections."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from appliance.model.facts import RunState
from appliance.model.names import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from appliance.model.facts import Workload
    from appliance.model.names import Port
    from appliance.plan.containers import MeshContainer


SETTLED = 10.0
"""Seconds after the first of a container's TCP ports was found listening. What does not listen by then is taken for a
port that opens on demand: nothing waits for it any more. Programs open what they always have within a second or two of
each other; decision 0071."""


def serves(workload: Workload, port: Port) -> bool:
    """Whether it can take connections on this port.

    A TCP port must have accepted one since the container's start; a UDP port cannot be asked. The health of a paused
    container is not judged: its check cannot run.
    """
    alive = workload.state is RunState.PAUSED or (workload.state is RunState.RUNNING and workload.healthy is not False)
    return alive and (port.protocol is Protocol.UDP or port.container in workload.accepting)


def may_open(workload: Workload, port: Port, ports: Iterable[Port]) -> bool:
    """Whether a TCP port that is not served may open when a client comes, as another of its `ports` listens already."""
    return (
        port.protocol is Protocol.TCP
        and workload.state is RunState.RUNNING
        and not serves(workload, port)
        and any(p.protocol is Protocol.TCP and serves(workload, p) for p in ports)
    )


def settles_in(workload: Workload, ports: Iterable[Port], now: float) -> float:
    """Return in how many seconds nothing waits any more for those of its ports that do not listen; infinite if none."""
    left = workload.accepting_since + SETTLED - now
    return left if 0 < left <= SETTLED and _unheard(workload, ports) else inf


def settling(containers: Iterable[MeshContainer], now: float) -> float:
    """Return in how many seconds the next of the containers that meshbox made settles."""
    return min(
        (settles_in(c.workload, c.declared.ports, now) for c in containers if c.workload.revision is not None),
        default=inf,
    )


def is_ready(workload: Workload, ports: Sequence[Port], now: float) -> bool:
    """Whether it runs, is healthy, and serves every port that is waited for."""
    return missing(workload, ports, now) is None


def missing(workload: Workload, ports: Sequence[Port], now: float) -> str | None:
    """Return what it lacks to be ready, in words for its owner, or None; `now` in seconds since the epoch."""
    if workload.problem is not None:
        return workload.problem
    if workload.state is not RunState.RUNNING:
        code = f" with exit code {workload.exit_code}" if workload.exit_code else ""
        return f"{workload.state}{code}"
    waiting = _unheard(workload, ports)
    if waiting and not (any(may_open(workload, port, ports) for port in waiting) and _settled(workload, now)):
        return f"waiting for port {waiting[0].container}"
    if workload.healthy is False:
        return "waiting for its health check"
    return None


def _unheard(workload: Workload, ports: Iterable[Port]) -> list[Port]:
    return [p for p in ports if p.protocol is Protocol.TCP and p.container not in workload.accepting]


def _settled(workload: Workload, now: float) -> bool:
    """Whether it has had its time; also where the clock was set back meanwhile."""
    return not 0 < workload.accepting_since + SETTLED - now <= SETTLED
