"""Steps that failed, and when each may be tried again: every subject has a count and a time of its own.

What fails for one container leaves all others alone: their steps go on at their own pace, and the one that failed is
not tried again before it is due, however often the bell rings. A step that leads elsewhere than the one that failed is
tried at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

import trio

from appliance.errors import NotYetError
from appliance.model import state as st
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from collections.abc import Set as AbstractSet

RETRY = Schedule((0.2, 1.0, 2.0, 5.0, 10.0))
"""Seconds until a step is tried again that has failed once, twice, … in a row."""
DOOR_RETRY = Schedule((0.2, 1.0, 5.0, 30.0))
"""The same for doors, beside which there is another way."""
NOW = -inf
"""The time at which something is due that may be tried at any time."""


@dataclass(slots=True)
class _Failed:
    step: st.Step
    failures: int = 0
    due: float | None = inf
    """On Trio's clock; None until the pass has ended in which it failed."""
    patient: bool = True
    """Whether what it misses may still come, so that its absence is no fault yet."""
    waiter: trio.CancelScope = field(default_factory=trio.CancelScope)


class Attempts:
    """The failed steps of one host."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called when a step is due because what it had to wait for is there."""
        self._wake = wake
        self._failed: dict[st.Subject, _Failed] = {}
        self._nursery: trio.Nursery | None = None

    def wait_in(self, nursery: trio.Nursery | None) -> None:
        """Wait in this nursery's tasks for what steps lack; without one, steps are only tried again by schedule.

        A pass that was cut short, and waiters that ended with it, have left steps without a time: they are due now.
        """
        self._nursery = nursery
        for failed in self._failed.values():
            if failed.due is None or failed.due == inf:
                failed.due = NOW

    def held(self, step: st.Step, now: float) -> bool:
        """Whether a step that leads to the same has failed, and is not due yet."""
        if not self._failed:  # as nearly always
            return False
        failed = self._failed.get(st.subject_of(step))
        return failed is not None and st.same_aim(failed.step, step) and (failed.due is None or now < failed.due)

    def failed(self, step: st.Step, error: Exception) -> bool:
        """Record a failure; return whether it is a fault.

        A NotYetError is no fault before what the step lacks has been awaited once. The step is due as soon as it comes.
        """
        failed = self._failed.setdefault(st.subject_of(step), _Failed(step))
        if not st.same_aim(failed.step, step):
            failed.patient = True
        failed.step = step
        failed.waiter.cancel()
        if isinstance(error, NotYetError) and self._nursery is not None:
            failed.waiter = trio.CancelScope()
            self._nursery.start_soon(self._wait, failed, error.wait)
            if failed.patient:
                failed.due = inf
                return False
        failed.failures += 1
        failed.due = None
        return True

    def succeeded(self, step: st.Step) -> None:
        """Forget the failures of its subject."""
        if self._failed:
            self._drop(st.subject_of(step))

    def renew(self, about: str) -> None:
        """Forget the failures of every subject about this, because it is not what it was when they happened."""
        for subject in [subject for subject in self._failed if subject.about == about]:
            self._drop(subject)

    def end_pass(self, now: float, subjects: AbstractSet[st.Subject]) -> None:
        """Set the time of what has failed since the last pass. Those that the pass had no step for are forgotten."""
        for subject in self._failed.keys() - subjects:
            self._drop(subject)
        for failed in self._failed.values():
            if failed.due is None:
                door = isinstance(failed.step, st.OpenDoor | st.CloseDoor)
                failed.due = now + (DOOR_RETRY if door else RETRY).after(failed.failures)

    def next_due(self, after: float) -> float:
        """Return when the next step is due. What was due before `after` waits for another step, not for its time."""
        return min((f.due for f in self._failed.values() if f.due is not None and f.due > after), default=inf)

    def _drop(self, subject: st.Subject) -> None:
        failed = self._failed.pop(subject, None)
        if failed is not None:
            failed.waiter.cancel()

    async def _wait(self, failed: _Failed, wait: Callable[[], Awaitable[object]]) -> None:
        with failed.waiter:
            try:
                there = bool(await wait())
            except Exception:  # noqa: BLE001 — the next attempt says why
                there = False
            if there or failed.patient:
                failed.due = NOW
                self._wake()
            failed.patient = False
