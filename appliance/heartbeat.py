"""How a part of the control plane shows that it goes on, and what cancels one that does not.

A part is a task that lasts as long as the appliance. It names the longest time for which it may show nothing, and calls
its heartbeat whenever it comes round. An await that never returns then costs that time: what it belongs to is
cancelled, and `control/supervisor.py` starts the part again. A part that waits for something that may never happen
waits through its heartbeat, in slices. So the same task that would be stuck beats after each slice, and no other beats
for it.

Trio can cancel no thread, and no await that shields itself. What hangs there is told of and waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

import trio

from appliance.errors import RetryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

T = TypeVar("T")

LOOK, LONG_LOOK = 0.5, 2.5
"""Seconds between checks of all heartbeats, at least and at most."""
LATE = 1.0
"""Seconds by which a check may come late. Beyond that the whole process stood still, for which no part is to blame."""
STUBBORN = 5.0
"""Seconds after which what was cancelled and has not ended counts as impossible to cancel."""
SLICES = 4
"""A wait beats so many times within the time in which it has to."""

_OURS = Path(__file__).parent


class StuckError(RetryError):
    """Something showed no progress for too long and was cancelled."""


class Run(Protocol):
    """What a part does until it is cancelled. It may be called again after it has failed, with all that it knew."""

    def __call__(self, beat: Heartbeat, /, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]:
        """Beat within the part's time; call `task_status.started()` once the parts after it may start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the control plane."""

    name: str
    run: Run
    silence: float = 30.0
    """Seconds for which it may show no progress."""
    may_end: bool = False
    """Whether it may return; the others return only if something is wrong."""
    awaited: bool = True
    """Whether the parts after it start only once it has."""


class Heartbeat:
    """Lets the work in its `with` block go on for as long as it is called in time.

    Where it is not, the block is cancelled and raises StuckError with the line that was waited at.
    """

    def __init__(
        self, limit: float = inf, *, name: str = "it", among: Heartbeats | None = None, armed: bool = True
    ) -> None:
        """`limit` is in seconds. Nothing is cancelled where it is in no collection that is watched, or not armed."""
        self.limit = limit
        self.name = name
        self.armed = armed
        self.stubborn = False
        """Whether it was cancelled, and goes on nevertheless."""
        self._among = among
        self._scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None
        self._last = -inf
        self._cancelled: float | None = None
        self._where = ""

    def __call__(self) -> None:
        """Show progress."""
        if self._among is not None:
            self._last = trio.current_time()

    def __enter__(self) -> Self:
        self()
        self._task = trio.lowlevel.current_task()
        self._scope.__enter__()
        if self._among is not None:
            self._among.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._among is not None:
            self._among.discard(self)
        caught = bool(self._scope.__exit__(kind, error, traceback))
        if self._scope.cancelled_caught:
            words = f"{self.name} showed no progress for {self.limit:g} s; it waited at {self._where}"
            raise StuckError(words) from None
        return caught

    def another(self, name: str, limit: float | None = None) -> Heartbeat:
        """Return one for a task beside, or for a piece of work within, with `limit` seconds of its own."""
        return Heartbeat(self.limit if limit is None else limit, name=name, among=self._among)

    async def sleep(self, seconds: float = inf) -> None:
        """Sleep, and beat meanwhile."""
        await self.wait(trio.Event(), seconds)

    async def wait(self, event: trio.Event, seconds: float = inf) -> bool:
        """Wait for an event and beat meanwhile; return False where it has not come after so many seconds."""
        end = trio.current_time() + max(seconds, 0.0)
        if event.is_set() or seconds <= 0:
            await trio.lowlevel.checkpoint()
        while not event.is_set() and (now := trio.current_time()) < end:
            with trio.move_on_at(min(end, self.slice_end(now))):
                await event.wait()
            self()
        self()
        return event.is_set()

    async def until(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` returns, and beat meanwhile. It is cancelled and begun again, and must lose nothing."""
        while True:
            with trio.move_on_at(self.slice_end(trio.current_time())):
                found = await attempt()
                self()
                return found
            self()

    def slice_end(self, now: float) -> float:
        """Return until when to wait before it beats again: at the same moment as all others of its limit.

        Each time that Trio wakes costs a third of a millisecond.
        """
        if self.limit == inf:
            return inf
        length = self.limit / SLICES
        return (now // length + 1) * length

    def silence(self, now: float) -> float:
        """Return for how many seconds it has shown nothing."""
        return now - self._last

    @property
    def due(self) -> float:
        """When it has to be checked, on Trio's clock."""
        return self._last + self.limit if self._cancelled is None else self._cancelled

    def judge(self, now: float, late: float) -> None:
        """Cancel the block if its time is over. `late` are seconds for which nothing could beat."""
        self._last += late
        if self._cancelled is not None:
            self.stubborn = now - self._cancelled >= STUBBORN
        elif self.armed and self.silence(now) > self.limit:
            self._cancelled = now
            self._where = self.where()
            self._scope.cancel()

    def where(self) -> str:
        """Return at which line of ours the task waits, and in which call that ends."""
        frames = list(self._task.iter_await_frames()) if self._task is not None else []
        places = [(Path(frame.f_code.co_filename), line, frame.f_code.co_name) for frame, line in frames]
        places = [place for place in places if place[0].name != "_traps.py"]  # by which Trio itself waits
        ours = [place for place in places if _OURS in place[0].parents and place[0].name != "heartbeat.py"]
        if not ours:
            return "a line that is not known"
        path, line, _ = ours[-1]
        return f"{path.relative_to(_OURS)}:{line} in {places[-1][2]}()"


class Heartbeats:
    """Those of all work that is under way."""

    def __init__(self) -> None:
        self._all: dict[Heartbeat, None] = {}
        self._next = inf

    def add(self, one: Heartbeat) -> None:
        """Watch it from now on."""
        self._all[one] = None

    def discard(self, one: Heartbeat) -> None:
        """Watch it no longer."""
        self._all.pop(one, None)

    @property
    def stubborn(self) -> tuple[Heartbeat, ...]:
        """Those that were cancelled and have not ended."""
        return tuple(one for one in self._all if one.stubborn)

    def look(self) -> float:
        """Cancel what is stuck; return after how many seconds to look again, LOOK at least and LONG_LOOK at most.

        Call it from a timer rather than from a task, which might be stuck too.
        """
        now = trio.current_time()
        late = max(0.0, now - self._next)
        soon = now + LONG_LOOK
        for one in list(self._all):
            one.judge(now, late if late > LATE else 0.0)
            soon = min(soon, one.due)
        self._next = max(soon, now + LOOK)
        return self._next - now


UNWATCHED: Final = Heartbeat()
"""For work that nothing watches."""
