"""Whether the rules of each container were in place before its program's first instruction.

What counts is what can be shown. When a namespace's rules are in place, the container's first process is looked at: as
long as it has executed nothing since the runtime forked it, its program has not begun. Everything else is late: one
that cannot be seen (no --pid=host), one whose start was not seen, and one that ended before it had rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from appliance.drivers.netns import owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.drivers.netns.owner import Process
    from appliance.model.network import NetnsId

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    container: str
    process: Process | None
    """Its first process; None where nobody knows."""


class Punctuality:
    """The starts that wait for rules, and how those before ended."""

    def __init__(self, *, runs_program: Callable[[Process], bool] = owner.runs_program) -> None:
        """Count nothing yet. `runs_program` says of a process whether the container's program may have begun."""
        self._runs_program = runs_program
        self._awaited: dict[NetnsId, _Awaited] = {}
        self.in_time = 0
        self.late = 0

    def await_rules(self, netns: NetnsId, container_id: str, process: Process | None) -> None:
        """Note that a container of the mesh starts in a new namespace, which has no rules of ours yet."""
        self._awaited[netns] = _Awaited(container=container_id, process=process)

    def rules_in_place(self, netns: NetnsId) -> None:
        """Note that they are, just now. What nobody waits for is no start."""
        awaited = self._awaited.pop(netns, None)
        if awaited is None:
            return
        if awaited.process is not None and not self._runs_program(awaited.process):
            self.in_time += 1
        else:
            self._is_late(awaited)

    def ended(self, container_id: str) -> None:
        """Note that the container has ended. Without rules until now it was late, if only for a moment."""
        for netns, awaited in list(self._awaited.items()):
            if awaited.container == container_id:
                del self._awaited[netns]
                self._is_late(awaited)

    def came_to_nothing(self, container_id: str) -> None:
        """Note that there was no start after all, or that the container is none of the mesh's."""
        for netns, awaited in list(self._awaited.items()):
            if awaited.container == container_id:
                del self._awaited[netns]

    def _is_late(self, awaited: _Awaited) -> None:
        self.late += 1
        log.warning(
            "rules came late to a container: its program may have run without them",
            container=awaited.container[:12],
            hint=None if awaited.process else "run the appliance with --pid=host, and check netns_dir",
        )
