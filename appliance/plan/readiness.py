"""When a container may be sent connections."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from appliance.model.facts import BoundPort, RunState
from appliance.model.names import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from appliance.model.facts import Workload
    from appliance.model.names import Port
    from appliance.plan.containers import MeshContainer


SETTLED = 10.0
"""Seconds after the first of a container's ports was found to have a program, or else after its start. What has none by
then is taken for a port that opens on demand: nothing waits for it any more, but for TCP ports where there is no other.
Programs open what they always have within a second or two of each other; decision 0071."""


def way(workload: Workload, port: Port) -> BoundPort | None:
    """Return where its program takes what is sent to this port, whatever else keeps it from being sent there."""
    usual = BoundPort(port.protocol, port.container)
    if usual in workload.bound:
        return usual
    return next((b for b in workload.bound if (b.protocol, b.port) == (port.protocol, port.container)), None)


def serves(workload: Workload, port: Port) -> bool:
    """Whether it can take connections or datagrams on this port: it runs, is healthy, and has a program there.

    The health of a paused container is not judged: its check cannot run.
    """
    alive = workload.state is RunState.PAUSED or (workload.state is RunState.RUNNING and workload.healthy is not False)
    return alive and way(workload, port) is not None


def may_open(workload: Workload, port: Port, ports: Iterable[Port]) -> bool:
    """Whether a port that has no program may get one when a client comes, as another of its `ports` has one already.

    One whose program nobody reaches is no such port. Where it has rules of its own its UDP ports always count, so
    these say nothing of its program.
    """
    return (
        workload.state is RunState.RUNNING
        and way(workload, port) is None
        and _where(workload, port) is None
        and any(serves(workload, p) for p in ports if not (workload.own_rules and p.protocol is Protocol.UDP))
    )


def settles_in(workload: Workload, ports: Sequence[Port], now: float) -> float:
    """Return in how many seconds nothing waits any more for those of its ports that do not listen; infinite if none."""
    left = _since(workload) + SETTLED - now
    ends = any(not _is_awaited(workload, port, ports) for port in _unheard(workload, ports))
    return left if 0 < left <= SETTLED and ends else inf


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
    lasting = [p for p in waiting if _is_awaited(workload, p, ports)]
    if lasting or (waiting and not _settled(workload, now)):
        port = (lasting or waiting)[0]
        where = _where(workload, port)
        words = f": its program listens {where} only" if where is not None else ""
        return f"waiting for port {_shown(port)}{words}"
    if workload.healthy is False:
        return "waiting for its health check"
    return None


def _unheard(workload: Workload, ports: Iterable[Port]) -> list[Port]:
    return [p for p in ports if way(workload, p) is None]


def _settled(workload: Workload, now: float) -> bool:
    """Whether it has had its time; also where the clock was set back meanwhile."""
    return not 0 < _since(workload) + SETTLED - now <= SETTLED


def _since(workload: Workload) -> float:
    return workload.bound_since or workload.started_at


def _is_awaited(workload: Workload, port: Port, ports: Iterable[Port]) -> bool:
    """Whether it is waited for however long that takes. Programs use UDP ports now and then only, or just to send."""
    if port.protocol is Protocol.UDP:
        return _where(workload, port) is not None
    return not may_open(workload, port, ports)


def _shown(port: Port) -> str:
    return str(port.container) if port.protocol is Protocol.TCP else f"{port.container}/{port.protocol}"


def _where(workload: Workload, port: Port) -> str | None:
    """Return where nobody else reaches its program."""
    found = (u.where for u in workload.unreached if (u.protocol, u.port) == (port.protocol, port.container))
    return next(found, None)
