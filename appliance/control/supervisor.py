"""Keeps each part of the control plane at work: one that fails or hangs is started again, and harms no other.

What carries traffic and answers DNS runs beside all of this and is not concerned. Until the appliance is ready, a part
that cannot start is an error of the start. From then on nothing that a part does can end the process.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import trio

from appliance.errors import MeshboxError, cause
from appliance.heartbeat import LONG_LOOK, Heartbeat, Heartbeats
from appliance.retry import Schedule

if TYPE_CHECKING:
    from appliance.faults import Faults
    from appliance.heartbeat import Part

RESTART = Schedule((0.1, 0.5, 1.0, 2.0, 4.0))
"""Seconds until a part is started again that has failed once, twice, … in a row."""
WELL = 30.0
"""Seconds after which a part that was started again counts as well."""


class Life(StrEnum):
    """What a part is doing."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    """It has failed, and waits to be started again."""
    STUCK = "stuck"
    """It hangs where it cannot be cancelled."""
    ENDED = "ended"
    """It has done what it had to do."""


@dataclass(slots=True, kw_only=True)
class PartState:
    """How a part fares. `since` is on Trio's clock, `restarts` counts since the start of the appliance."""

    life: Life = Life.STARTING
    since: float = 0.0
    restarts: int = 0
    failures: int = 0
    """In a row."""

    @property
    def is_up(self) -> bool:
        """Whether it is at work, or has done all that it had to do."""
        return self.life in {Life.RUNNING, Life.ENDED}

    def become(self, life: Life) -> None:
        """Note what it does from now on."""
        if self.life is not life:
            self.life, self.since = life, trio.current_time()


class _Status:
    """Hands on that a part has started, the first time."""

    def __init__(self, state: PartState, beat: Heartbeat, outer: trio.TaskStatus[None] | None) -> None:
        self._state = state
        self._beat = beat
        self.outer = outer

    def started(self, _value: None = None) -> None:
        """Note that the part works."""
        self._beat.armed = True
        self._state.become(Life.RUNNING)
        outer, self.outer = self.outer, None
        if outer is not None:
            outer.started()


class Supervisor:
    """Starts parts, watches their heartbeats, and starts those again that fail."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._hearts = Heartbeats()
        self.states: dict[str, PartState] = {}
        """By the name of the part."""
        self._stuck: set[str] = set()
        """Names of what hangs and cannot be cancelled."""
        self.ready = False
        """Whether the appliance has started: from then on no failure is raised."""

    def look(self) -> float:
        """Cancel what hangs; return after how many seconds to look again. Never raises: a timer calls it."""
        pause = LONG_LOOK
        with suppress(Exception):
            pause = self._hearts.look()
            self._note(trio.current_time())
        return pause

    async def start(self, part: Part, nursery: trio.Nursery) -> None:
        """Keep a part at work in a nursery; return once it has started. Raises what keeps it from starting."""
        if part.awaited:
            await nursery.start(self.keep, part)
        else:
            nursery.start_soon(self.keep, part)

    async def keep(self, part: Part, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a part, again and again if need be, until cancelled."""
        state = self.states.setdefault(part.name, PartState())
        outer: trio.TaskStatus[None] | None = task_status
        while True:
            state.become(Life.STARTING)
            beat = Heartbeat(part.silence, name=part.name, among=self._hearts, armed=outer is None or self.ready)
            status = _Status(state, beat, outer)
            error = await self._run(part, beat, status)
            if error is None and part.may_end:
                status.started()
                state.become(Life.ENDED)
                return
            outer = status.outer
            if outer is not None and not self.ready:
                raise error or RuntimeError(f"{part.name} has ended before it had started")
            await self._rest(part.name, state, error)

    async def _run(self, part: Part, beat: Heartbeat, status: _Status) -> Exception | None:
        """Run a part once; return what it failed with, None where it has returned."""
        try:
            with beat:
                await part.run(beat, task_status=status)
        except BaseExceptionGroup as group:
            rest = group.split(trio.Cancelled)
            if rest[0] is not None:  # the appliance ends: what else went wrong has nobody to tell
                raise rest[0] from None
            if not isinstance(group, Exception):
                raise
            return group
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one part
            return error
        return None

    async def _rest(self, name: str, state: PartState, error: Exception | None) -> None:
        """Tell of a failure, and wait until the part may be started again."""
        state.become(Life.FAILED)
        state.failures += 1
        state.restarts += 1
        first: BaseException | None = error
        while isinstance(first, BaseExceptionGroup) and len(first.exceptions) == 1:
            first = first.exceptions[0]
        pause = RESTART.after(state.failures)
        words = f"{name}, a part of the control plane, has failed; it is started again, and traffic goes on"
        why = cause(first) if first is not None else "it returned"
        # A traceback says nothing where the error was worded by us, or by its heartbeat.
        trace = {} if first is None or isinstance(first, MeshboxError) else {"exc_info": error}
        self._tell(name, words, why, **trace)
        await trio.sleep(pause)

    def _tell(self, name: str, words: str, why: str, **trace: object) -> None:
        with suppress(Exception):  # an error that cannot even be logged ends nothing either
            self._faults.report(("part", name), words, why, **trace)

    def _note(self, now: float) -> None:
        """Note which parts are well again, and what hangs and cannot be cancelled."""
        stuck = {one.name: one for one in self._hearts.stubborn}
        for name in stuck.keys() - self._stuck:
            if name in self.states:
                self.states[name].become(Life.STUCK)
            words = f"{name}, in the control plane, hangs and cannot be cancelled; traffic goes on"
            self._tell(name, words, f"it waits at {stuck[name].where()}")
        for name in self._stuck - stuck.keys() - self.states.keys():
            self._faults.over(("part", name))
        self._stuck = set(stuck)
        for name, state in self.states.items():
            well = state.is_up and now - state.since >= WELL
            if well and state.failures:
                state.failures = 0
                self._faults.over(("part", name))
