"""When a container may be sent connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.model.facts import BoundPort, RunState
from appliance.model.names import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.model.facts import Workload
    from appliance.model.names import Port


def way(workload: Workload, port: Port) -> BoundPort | None:
    """Return where its program takes what is sent to this port, whatever else keeps it from being sent there."""
    usual = BoundPort(port.protocol, port.container)
    if usual in workload.bound:
        return usual
    return next((b for b in workload.bound if (b.protocol, b.port) == (port.protocol, port.container)), None)


def serves(workload: Workload, port: Port) -> bool:
    """Whether it can take connections or datagrams on this port: it runs, is healthy, and has a program there."""
    return workload.state is RunState.RUNNING and workload.healthy is not False and way(workload, port) is not None


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
    waiting = next((p for p in ports if way(workload, p) is None), None)
    if waiting is not None:
        return f"waiting for port {_shown(waiting)}{_unreached(workload, waiting)}"
    if workload.healthy is False:
        return "waiting for its health check"
    return None


def _shown(port: Port) -> str:
    return str(port.container) if port.protocol is Protocol.TCP else f"{port.container}/{port.protocol}"


def _unreached(workload: Workload, port: Port) -> str:
    found = (u.where for u in workload.unreached if (u.protocol, u.port) == (port.protocol, port.container))
    where = next(found, None)
    return f": its program listens {where} only" if where is not None else ""
