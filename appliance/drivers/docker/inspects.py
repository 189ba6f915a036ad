"""When each container is inspected: one question at a time about each, and little for one that changes without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.drivers.docker.http import CALL_TIMEOUT
from appliance.heartbeat import UNWATCHED
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from appliance.heartbeat import Heartbeat

AT_ONCE = 16
"""Inspects under way at once."""
LONGEST_INSPECT = 6 * CALL_TIMEOUT
"""Seconds without progress after which an inspect is stuck: Docker holds it back while it starts a container."""
REINSPECT = Schedule((0.0, 0.0, 0.0, 0.1, 0.2, 0.5))
"""Seconds until a container is inspected again, by how often it was within IN_A_ROW seconds of the time before."""
IN_A_ROW = 1.0


class Inspects:
    """The inspects that are asked for and under way. What was asked for while it does not run is made later."""

    def __init__(
        self, ask: Callable[[str], Awaitable[Callable[[], None]]], failed: Callable[[str, Exception], None]
    ) -> None:
        """`ask` inspects the container of an id, and returns what takes the answer, which is called if it is fresh.

        `failed` is called with what either of them raises.
        """
        self._ask = ask
        self._failed = failed
        self._limit = trio.CapacityLimiter(AT_ONCE)
        self._under_way: set[str] = set()
        self._again: set[str] = set()
        self._made: dict[str, tuple[float, int]] = {}
        """When each container was last inspected, on Trio's clock, and how often in a row."""
        self._beat = UNWATCHED
        self.nursery: trio.Nursery | None = None
        """Where they run; None while nothing does."""

    async def run(self, beat: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        """Be there for inspects, until cancelled; those that were cut short or asked for meanwhile are made now."""
        async with trio.open_nursery() as nursery:
            try:
                self.nursery, self._beat = nursery, beat
                for container_id in list(self._again):
                    self.begin(container_id)
                task_status.started()
                await beat.sleep()
            finally:
                self.nursery = None

    def begin(self, container_id: str, nursery: trio.Nursery | None = None) -> None:
        """Inspect it soon. If that is under way already, inspect it once more afterwards."""
        nursery = nursery or self.nursery
        if container_id in self._under_way or nursery is None:
            self._again.add(container_id)
        else:
            self._under_way.add(container_id)
            nursery.start_soon(self._until_fresh, container_id)

    def forget(self, container_id: str) -> None:
        """Note that it is gone. An answer under way may be older, and would bring it back: it is asked again."""
        self._made.pop(container_id, None)
        if container_id in self._under_way:
            self._again.add(container_id)

    def _pause(self, container_id: str) -> float:
        now = trio.current_time()
        last, in_a_row = self._made.get(container_id, (0.0, 0))
        in_a_row = in_a_row + 1 if now - last < IN_A_ROW else 1
        self._made[container_id] = now, in_a_row
        return REINSPECT.after(in_a_row)

    async def _until_fresh(self, container_id: str) -> None:
        cut_short = False
        try:
            while True:
                await trio.sleep(self._pause(container_id))
                self._again.discard(container_id)
                async with self._limit:
                    with self._beat.another(f"inspecting container {container_id[:12]}", LONGEST_INSPECT):
                        take = await self._ask(container_id)
                if container_id not in self._again:  # else an event came meanwhile: this answer may be old
                    break
            take()
        except trio.Cancelled:
            cut_short = True
            raise
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one container
            self._failed(container_id, error)
        finally:
            self._under_way.discard(container_id)
            self._again.discard(container_id)
            if cut_short:
                self._again.add(container_id)
