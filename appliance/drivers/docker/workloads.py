"""The containers of this host as facts, and how each thing seen of Docker changes them. All of it is synchronous.

A container is *starting* between the appearance of its namespace and Docker showing it as running: until then its
entry is made of what the namespace itself tells, and what Docker says about it is older than that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from appliance.drivers.docker import labels
from appliance.drivers.netns import identity as namespaces
from appliance.model.facts import DockerNetwork, RunState, Workload
from appliance.model.network import Netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.drivers.docker.prestart import StartingContainer
    from appliance.drivers.docker.types import Event, Inspected, Listed
    from appliance.faults import Faults
    from appliance.model.network import NetnsId

STARTING_LIFE = 60.0
"""Seconds after which a container that Docker still does not show as running is no longer taken to be starting."""

_ALIVE = frozenset({RunState.RUNNING, RunState.PAUSED})


class Changed(Protocol):
    """Called after each change of the roster."""

    def __call__(self, *, urgent: bool) -> None:
        """`urgent`: somebody's rules or backends are wrong until it is acted upon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Starting:
    netns: Netns
    since: float
    """Seconds since the epoch."""


class WorkloadStore:
    """Labelled containers by id, and Docker's networks by name."""

    def __init__(
        self, *, netns_dir: Path, changed: Changed, fresh_netns: Callable[[NetnsId], None], faults: Faults
    ) -> None:
        """`fresh_netns` is told of each namespace that is new here, before `changed` is called."""
        self._netns_dir = netns_dir
        self._changed = changed
        self._fresh_netns = fresh_netns
        self._faults = faults
        self._starting: dict[str, _Starting] = {}
        self.networks: dict[str, DockerNetwork] = {}
        self.table: dict[str, Workload] = {}
        self.seen_before_start = 0
        """Containers seen before their program ran, since the start."""

    def sketch(self, listed: Listed) -> bool:
        """Take in what a list or an event tells of a container not known yet; return whether it is labelled."""
        if listed.id not in self.table:
            workload = labels.sketch(listed)
            if workload is None:
                return False
            self._put(workload)
        return True

    def seen(self, inspected: Inspected, owner: Inspected | None) -> None:
        """Take in what inspect tells. `owner` is the container whose network it shares, if any."""
        now = labels.complete(inspected, networks=self.networks, identify=self._identify, owner=owner)
        if now is None:
            return
        if now.state not in _ALIVE and self._start_under_way(now.id):
            return  # Docker's answer is from before the start that is under way
        self._starting.pop(now.id, None)
        before = self.table.get(now.id)
        if before is not None and before.netns == now.netns and before.started_at in {0.0, now.started_at}:
            now = replace(now, accepting=before.accepting)
        elif now.netns is not None:
            self._fresh_netns(now.netns.id)
        started = now.started_at and (before is None or before.started_at != now.started_at)
        self._put(now, urgent=bool(started))  # it is dialled from the next pass on

    def born(self, container: StartingContainer) -> bool:
        """Take in a container whose program does not run yet; return whether later addresses are of interest."""
        before = self.table.get(container.container_id)
        starting = self._starting.get(container.container_id)
        if before is None or (before.netns == container.netns and starting is None):
            return False  # gone, or Docker has told of it already
        found, _ = labels.attach_by_address(container.addresses, self.networks.values())
        if not found or namespaces.identify(container.netns.path) != container.netns.id:
            return True
        if starting is None or starting.netns != container.netns:
            self.seen_before_start += 1
            self._starting[before.id] = _Starting(netns=container.netns, since=time.time())
            self._fresh_netns(container.netns.id)
        self._put(
            replace(
                _stopped(before),
                state=RunState.RUNNING,
                netns=container.netns,
                attachments=found,
                healthy=False,  # nothing serves there before the start event
                exit_code=None,
                started_at=0.0,
            ),
            urgent=True,
        )
        return True

    def died(self, event: Event) -> None:
        """Forget its namespace and addresses at once: nothing may be sent there, nor may they speak for another."""
        before = self.table.get(event.id)
        starting = self._starting.get(event.id)
        if before is None or event.time < (starting.since if starting else before.started_at):
            return  # not ours, or it tells of a former run
        self._starting.pop(event.id, None)
        code = event.attributes.get("exitCode", "")
        self._put(replace(_stopped(before), exit_code=int(code) if code.isdigit() else None), urgent=True)

    def vanished(self, path: str) -> str | None:
        """Take in that a namespace's file is gone; return the container whose start came to nothing by that."""
        for container_id, starting in self._starting.items():
            if starting.netns.path == path:
                del self._starting[container_id]
                self._put(_stopped(self.table[container_id]))
                return container_id
        return None

    def accepted(self, container_id: str, netns: NetnsId, port: int) -> None:
        """Take in that a TCP port of a container has accepted a connection."""
        workload = self.table.get(container_id)
        if workload is not None and workload.netns is not None and workload.netns.id == netns:
            self._put(replace(workload, accepting=workload.accepting | {port}))

    def remove(self, container_id: str) -> None:
        """Take in that Docker has no such container any more."""
        self._starting.pop(container_id, None)
        if self.table.pop(container_id, None) is not None:
            self._changed(urgent=True)

    def is_starting(self, container_id: str) -> bool:
        """Whether its namespace was seen, and Docker has not shown it as running yet."""
        return container_id in self._starting

    def is_settled(self, container_id: str) -> bool:
        """Whether it runs and Docker has said so: inspect will answer at once."""
        workload = self.table.get(container_id)
        return workload is not None and workload.state in _ALIVE and container_id not in self._starting

    def _start_under_way(self, container_id: str) -> bool:
        starting = self._starting.get(container_id)
        return (
            starting is not None
            and time.time() - starting.since < STARTING_LIFE
            and namespaces.identify(starting.netns.path) == starting.netns.id
        )

    def _identify(self, sandbox_key: str) -> Netns | None:
        """Find the namespace file: in our view of Docker's netns directory, or else where Docker itself sees it."""
        for path in (self._netns_dir / Path(sandbox_key).name, Path(sandbox_key)):
            netns_id = namespaces.identify(str(path))
            if netns_id is not None:
                if path.parent != self._netns_dir:
                    self._faults.report(
                        "netns_dir",
                        "rules come late to starting containers: set netns_dir to Docker's netns directory",
                        f"Docker has it at {path.parent}, netns_dir is {self._netns_dir}",
                    )
                return Netns(id=netns_id, path=str(path))
        return None

    def _put(self, workload: Workload, *, urgent: bool = False) -> None:
        if self.table.get(workload.id) != workload:
            self.table[workload.id] = workload
            self._changed(urgent=urgent)


def _stopped(workload: Workload) -> Workload:
    return replace(
        workload, state=RunState.EXITED, netns=None, attachments=(), accepting=frozenset(), healthy=None, problem=None
    )
