"""Which of the machines that are not healthy say themselves that they are alive.

A critical check, or a registration that has vanished, says only that Consul does not hear of a machine. The machine may
live, go on as last known and call others. Or it may be dead, and another computer may have its address tomorrow. So the
machine itself is asked at its presence port (`presence.py`) for as long as it is not healthy: it may call while it
answers.

Only the outcome of a question changes the right of a machine. An error of this host (no descriptors, no route) is no
outcome. Nor is a lack of answers while facts are held: this machine may be the one that is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.consul.presence import PATIENCE, NoAnswerError, Presence, ask
from appliance.errors import cause
from appliance.heartbeat import UNWATCHED, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address

    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Machine

log = structlog.get_logger()

PERIOD = 5.0
"""Seconds from one question to the next. The first one is asked as soon as a machine is not healthy."""
LONGEST = 2 * PATIENCE
"""Seconds after which a question that has not even timed out is given up."""


@dataclass(eq=False, slots=True)
class _AskedMachine:
    """A machine that is being asked, and what is known of it."""

    machine: Machine
    answers: bool
    trouble: str = ""
    """Why it cannot be asked, as it was logged."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Liveness:
    """Says that this machine is alive, and asks the others, each on its own."""

    def __init__(self, node: str, *, held: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Open nothing yet.

        `held` says whether facts are held. `changed` is called when a machine begins or ceases to answer.
        """
        self._node = node
        self._held = held
        self._changed = changed
        self._presence = Presence(node, lambda address: address in self._addresses)
        self._addresses: frozenset[IPv4Address] = frozenset()
        self._own_address: IPv4Address | None = None
        self._asked: dict[tuple[str, IPv4Address, int | None], _AskedMachine] = {}
        self._nursery: trio.Nursery | None = None
        self._beat = UNWATCHED

    @property
    def ports(self) -> frozenset[int]:
        """The presence port, once it is open."""
        return frozenset() if self._presence.port is None else frozenset({self._presence.port})

    def open(self, span: tuple[int, int], taken: AbstractSet[int], own: Machine | None) -> int | None:
        """Open the presence port and return it, or None if all are taken. `own` is this machine as last known."""
        self._presence.open(span, taken, None if own is None else own.presence_port)
        return self._presence.port

    @property
    def parts(self) -> tuple[Part, ...]:
        """What answers, and what asks."""
        return (
            Part(name="presence port", run=self._presence.run, may_end=True),
            Part(name="liveness", run=self._run),
        )

    def close(self) -> None:
        """Close the presence port."""
        self._presence.close()

    async def _run(self, beat: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        """Ask until cancelled."""
        self._beat = beat
        async with trio.open_nursery() as nursery:
            try:
                self._nursery = nursery
                for asked in self._asked.values():
                    asked.scope = trio.CancelScope()
                    nursery.start_soon(self._keep_asking, asked)
                task_status.started()
                await beat.sleep()
            finally:
                self._nursery = None

    def judge(self, machines: Iterable[Machine]) -> tuple[Machine, ...]:
        """Return all machines with whether they answer; those that are not healthy are asked from now on.

        A machine that was not asked before keeps its `answers`.
        """
        found = []
        former, self._asked = self._asked, {}
        for machine in machines:
            if machine.node == self._node:
                self._own_address = machine.address
            if machine.healthy or machine.node == self._node:
                found.append(replace(machine, answers=True))
                continue
            key = (machine.node, machine.address, machine.presence_port)
            asked = self._asked[key] = former.pop(key) if key in former else self._begin(machine)
            found.append(replace(machine, answers=asked.answers))
        for asked in former.values():
            asked.scope.cancel()
        self._addresses = frozenset(machine.address for machine in found)
        return tuple(found)

    def answers(self, machine: Machine) -> bool:
        """Whether a machine answers, or could and was not asked yet."""
        asked = self._asked.get((machine.node, machine.address, machine.presence_port))
        return machine.presence_port is not None if asked is None else asked.answers

    def _begin(self, machine: Machine) -> _AskedMachine:
        asked = _AskedMachine(machine, answers=machine.answers and machine.presence_port is not None)
        if self._nursery is not None:
            self._nursery.start_soon(self._keep_asking, asked)
        return asked

    async def _keep_asking(self, asked: _AskedMachine) -> None:
        node, address, port = asked.machine.node, asked.machine.address, asked.machine.presence_port
        with asked.scope:
            while port is not None:
                began = trio.current_time()
                try:
                    with self._beat.another(f"asking {node}", LONGEST):
                        await ask(node, address, port, self._own_address)
                except NoAnswerError as error:
                    self._silent(asked, error)
                except Exception as error:  # noqa: BLE001 — a fault of this host is no outcome
                    if asked.trouble != cause(error):
                        asked.trouble = cause(error)
                        log.warning(
                            "cannot ask a machine whether it is alive; it may call as before",
                            machine=node,
                            cause=asked.trouble,
                        )
                else:
                    self._alive(asked)
                await trio.sleep_until(began + PERIOD)

    def _silent(self, asked: _AskedMachine, error: NoAnswerError) -> None:
        asked.trouble = ""
        if asked.answers and not self._held():
            asked.answers = False
            log.warning(
                "a machine does not answer; it may not call until it does", machine=asked.machine.node, cause=str(error)
            )
            self._changed()

    def _alive(self, asked: _AskedMachine) -> None:
        asked.trouble = ""
        if not asked.answers:
            asked.answers = True
            log.info("a machine answers again; it may call", machine=asked.machine.node)
            self._changed()
