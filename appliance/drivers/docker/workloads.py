"""The containers of this host as facts, and how each observation of Docker changes them. All of it is synchronous.

A container is *starting* from the appearance of its namespace until Docker shows it as running. During that time its
entry comes from the namespace itself, because what Docker says about it is older.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from appliance.drivers.docker import workload
from appliance.drivers.docker.punctuality import Punctuality
from appliance.drivers.netns import identity
from appliance.errors import InputError
from appliance.model.facts import Attachment, DockerNetwork, RunState, Workload
from appliance.model.network import Netns
from appliance.model.numbers import parse_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.drivers.docker.types import Event, Inspected, Listed
    from appliance.drivers.netns.owner import Process
    from appliance.faults import Faults
    from appliance.model.facts import BoundPort, UnreachedPort
    from appliance.model.network import NetnsId

LAST_EXIT_CODE = 2**32 - 1
"""containerd has 32 bits for an exit code."""
STARTING_LIFE = 60.0
"""Seconds after which a container that Docker still does not show as running no longer counts as starting."""

_ALIVE = frozenset({RunState.RUNNING, RunState.PAUSED})


class Changed(Protocol):
    """Called after each change of the store."""

    def __call__(self, *, urgent: bool) -> None:
        """`urgent`: some rules or backends are wrong until the next pass."""


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
        """`fresh_netns` is called with each namespace that is new here, before `changed` is."""
        self._netns_dir = netns_dir
        self._changed = changed
        self._fresh_netns = fresh_netns
        self._faults = faults
        self._starting: dict[str, _Starting] = {}
        self.connecting: dict[str, list[str]] = {}
        """Containers between `network connect` and `start`, oldest first → those networks, by name."""
        self.networks: dict[str, DockerNetwork] = {}
        self.by_id: dict[str, Workload] = {}
        self.punctuality = Punctuality()
        self._began = time.time()

    def begin_connecting(self, container_id: str, network: str) -> None:
        """Note that Docker has connected a container that does not run yet to a network, by name."""
        self.connecting.setdefault(container_id, []).append(network)

    def end_connecting(self, container_id: str) -> None:
        """Note that its start has ended, well or not."""
        self.connecting.pop(container_id, None)

    def only_connecting(self) -> str | None:
        """Return the id of the container between `network connect` and `start`, if there is exactly one."""
        return next(iter(self.connecting)) if len(self.connecting) == 1 else None

    def add(self, listed: Listed) -> bool:
        """Add a container from a list or an event unless it is known already; return whether it is labelled."""
        if listed.id not in self.by_id:
            found = workload.from_list(listed)
            if found is None:
                return False
            self._put(found)
        return True

    def update(self, inspected: Inspected, owner: Inspected | None) -> None:
        """Replace a container by what inspect shows. `owner` is the container whose network it shares, if any."""
        now = workload.from_inspect(inspected, networks=self.networks, identify=self.identify, owner=owner)
        if now is None:
            return
        if now.state not in _ALIVE and self._start_under_way(now.id):
            return  # Docker's answer is older than the start that is under way
        self._starting.pop(now.id, None)
        before = self.by_id.get(now.id)
        if before is not None and before.netns == now.netns and before.started_at in {0.0, now.started_at}:
            now = replace(now, bound=before.bound, bound_since=before.bound_since, unreached=before.unreached)
        elif now.netns is not None:
            self._fresh_netns(now.netns.id)
            if now.started_at > self._began and not self._is_shared(now):  # a start that nobody has seen
                self.punctuality.await_rules(now.netns.id, now.id, None)
        if now.problem is not None:
            self.punctuality.came_to_nothing(now.id)
        started = now.started_at and (before is None or before.started_at != now.started_at)
        moved = before is not None and before.attachments != now.attachments
        self._put(now, urgent=bool(started) or moved)  # it is dialled, or dialled elsewhere, from the next pass on

    def begin_start(
        self, container_id: str, netns: Netns, attachments: tuple[Attachment, ...], process: Process | None = None
    ) -> bool:
        """Publish a container whose program does not run yet; return whether further attachments are of interest.

        Without any attachment, or when the namespace is gone again, nothing is published. Attachments need no address:
        without one, the namespace has its rules, and nobody is let in yet. `process` is the container's first one.
        """
        before = self.by_id.get(container_id)
        starting = self._starting.get(container_id)
        if before is None or (before.netns == netns and starting is None):
            return False  # gone, or Docker has shown it as running already
        if not attachments or identity.identify(netns.path) != netns.id:
            return True
        if starting is None or starting.netns != netns:
            self.punctuality.await_rules(netns.id, container_id, process)
            self._starting[container_id] = _Starting(netns=netns, since=time.time())
            self._fresh_netns(netns.id)
        self._put(
            replace(
                _stopped(before),
                state=RunState.RUNNING,
                netns=netns,
                attachments=attachments,
                healthy=False,  # nothing serves there before the start event
                exit_code=None,
                started_at=0.0,
            ),
            urgent=True,
        )
        return True

    def died(self, event: Event) -> None:
        """Forget its namespace and addresses at once: others may have them next, and nothing may be sent there."""
        before = self.by_id.get(event.id)
        starting = self._starting.get(event.id)
        if before is None or event.time < (starting.since if starting else before.started_at):
            return  # not ours, or the end of a former run
        self._starting.pop(event.id, None)
        self.punctuality.ended(event.id)
        self._put(replace(_stopped(before), exit_code=_exit_code(event)), urgent=True)

    def abandon_start(self, path: str) -> str | None:
        """Undo `begin_start` for the namespace whose file is gone; return its container, None where there is none."""
        for container_id, starting in self._starting.items():
            if starting.netns.path == path:
                del self._starting[container_id]
                self.punctuality.came_to_nothing(container_id)
                self._put(_stopped(self.by_id[container_id]))
                return container_id
        return None

    def is_in(self, container_id: str, netns: NetnsId) -> bool:
        """Return whether a container is in this namespace still."""
        found = self.by_id.get(container_id)
        return found is not None and found.netns is not None and found.netns.id == netns

    def seen(
        self, container_id: str, netns: NetnsId, bound: frozenset[BoundPort], unreached: frozenset[UnreachedPort]
    ) -> None:
        """Note which ports of a container have a program in this namespace now."""
        before = self.by_id[container_id] if self.is_in(container_id, netns) else None
        if before is None or (before.bound == bound and before.unreached == unreached):
            return
        since = (before.bound_since or time.time()) if bound else 0.0
        now = replace(before, bound=bound, bound_since=since, unreached=unreached)
        # What has gone must not be dialled; what has come can wait until the others have, too.
        self._put(now, urgent=not before.bound <= bound)

    def remove(self, container_id: str) -> None:
        """Remove a container that Docker no longer has; one that is not known is no error."""
        self._starting.pop(container_id, None)
        self.connecting.pop(container_id, None)
        self.punctuality.came_to_nothing(container_id)
        if self.by_id.pop(container_id, None) is not None:
            self._changed(urgent=True)

    def is_starting(self, container_id: str, netns: Netns | None = None) -> bool:
        """Return whether its namespace (this one) was seen, and Docker has not shown it as running yet."""
        starting = self._starting.get(container_id)
        return starting is not None and netns in {None, starting.netns}

    def is_settled(self, container_id: str) -> bool:
        """Return whether it runs and Docker has said so: inspect will answer at once."""
        found = self.by_id.get(container_id)
        return found is not None and found.state in _ALIVE and container_id not in self._starting

    def _is_shared(self, one: Workload) -> bool:
        """Return whether another container of the mesh is in its namespace, which has rules then."""
        return any(w.netns == one.netns for w in self.by_id.values() if w.id != one.id)

    def _start_under_way(self, container_id: str) -> bool:
        starting = self._starting.get(container_id)
        return (
            starting is not None
            and time.time() - starting.since < STARTING_LIFE
            and identity.identify(starting.netns.path) == starting.netns.id
        )

    def identify(self, sandbox_key: str) -> Netns | None:
        """Find the namespace file: in `netns_dir`, or else where Docker says, which is reported as a fault."""
        for path in (self._netns_dir / Path(sandbox_key).name, Path(sandbox_key)):
            netns_id = identity.identify(str(path))
            if netns_id is not None:
                if path.parent != self._netns_dir:
                    self._faults.report(
                        "netns_dir",
                        "rules come late to starting containers: set netns_dir to Docker's netns directory",
                        f"Docker has it at {path.parent}, netns_dir is {self._netns_dir}",
                    )
                return Netns(id=netns_id, path=str(path))
        return None

    def _put(self, now: Workload, *, urgent: bool = False) -> None:
        if self.by_id.get(now.id) != now:
            self.by_id[now.id] = now
            self._changed(urgent=urgent)


def _exit_code(event: Event) -> int | None:
    """Return the code with which a container ended; a label of that name takes the place of Docker's own word."""
    try:
        return parse_number(event.attributes.get("exitCode"), 0, LAST_EXIT_CODE)
    except InputError:
        return None


def _stopped(before: Workload) -> Workload:
    """Leave out the problems that another start may end; with any other, that start must not open the mesh to it."""
    return replace(
        before,
        state=RunState.EXITED,
        netns=None,
        attachments=(),
        bound=frozenset(),
        bound_since=0.0,
        unreached=frozenset(),
        healthy=None,
        problem=before.fixed_problem,
    )
