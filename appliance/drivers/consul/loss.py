"""Tells whether what is missing from an answer was removed or lost.

A new leader, a restored backup, or servers that lost their data answer with less than they had. Each of these also
loses or changes a random value of ours, the epoch. So when an answer has less than was known, the epoch is read again.
If it is the known one, what is missing was removed. If not, everything known is held until its owners had the time to
put it back. A new epoch has the former ones behind it. So an appliance that starts and finds another epoch can tell a
Consul that lost its data from another Consul, to which nothing that is known applies.

After a loss of power all agents were away, and each takes its machine for dead until the next heartbeat. So after a
while without Consul no healthy machine counts as dead or removed until every machine had the time for a heartbeat.

An answer without this very machine says nothing at all: where a token may not read services, Consul leaves them out
without an error.

A restored backup has the same epoch, unless it is older than the epoch. But the index of what changed since then goes
backwards, which is as good a sign of a loss.
"""

from __future__ import annotations

import uuid
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import trio

from appliance.drivers.consul.codec import MESHBOX, TTL, machine_id, service_id
from appliance.errors import RetryError
from appliance.heartbeat import UNWATCHED
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from appliance.drivers.consul.api import ConsulApi
    from appliance.drivers.consul.staleness import Staleness
    from appliance.heartbeat import Heartbeat

log = structlog.get_logger()

EPOCH = "epoch"
"""The key of the epoch."""
FORMER = 8
"""Number of former epochs that are written behind a new one."""
GRACE = 60.0
"""Seconds after a loss of data for which nothing counts as removed: four times the TTL of a heartbeat."""
DOUBT = 5.0
"""The same where a server may only be behind."""
AWAY = TTL / 3
"""Seconds without an answer after which agents may have missed heartbeats."""
LOOK = 1.0
"""Seconds between checks of the epoch during that time: it may have been a false alarm."""
APPEARS = Schedule((0.1, 0.2, 0.5, LOOK))
"""Seconds between checks whether Consul shows this machine. It is a fault only if the last of these checks fails."""
QUERY = "data"
OWN = "own machine"

_K = TypeVar("_K")
_V = TypeVar("_V")


class LossDetector:
    """Knows the epoch, and until when nothing counts as removed."""

    def __init__(
        self,
        api: ConsulApi,
        staleness: Staleness,
        node: str,
        *,
        lost: Callable[[], None],
        other: Callable[[], None],
        grace: float = GRACE,
    ) -> None:
        """Ask nothing yet.

        `lost` is called whenever Consul has lost its data. `other` is called when the first epoch that is read belongs
        to another Consul than the one on disk. `grace` is in seconds.
        """
        self._api = api
        self._staleness = staleness
        self._own = machine_id(node)
        self._lost = lost
        self._other = other
        self._met = False
        self._unsettled = trio.Event()
        """Set while something is held that may not come back."""
        self._grace = grace
        self._until = 0.0
        self._older = False
        """Whether Consul is known to have data of an earlier time."""
        self._former = ""
        """The epoch before the last loss."""
        self.epoch = ""
        """The epoch of this Consul, with former ones behind it; empty before the first contact."""

    def remember(self, epoch: str) -> None:
        """Take over the epoch that was known before the start."""
        self.epoch = epoch

    async def compare(self, found: tuple[bytes, int] | None) -> None:
        """Read the epoch unless this value of its key is the known one. Raises RetryError."""
        if found is None or found[0] != self.epoch.encode():
            await self.look()

    @property
    def suspended(self) -> float:
        """Seconds for which nothing counts as removed any more."""
        return max(0.0, self._until - trio.current_time())

    async def look(self) -> None:
        """Read the epoch, and make one where there is none. Raises RetryError."""
        found = await self._api.value(EPOCH)
        epoch = found[0].decode(errors="replace") if found else ""
        met, self._met = self._met, True
        if self.epoch and epoch and not met and not set(self.epoch.split()) & set(epoch.split()):
            log.warning(
                "this is another Consul than before; what was known from that one does not count here",
                consul=self._api.where,
            )
            self._other()
            self.epoch = epoch
            return
        if self.suspended and self._former and epoch == self._former:
            self._until = 0.0  # a false alarm: everything is there again
            self.epoch = epoch
        elif self.epoch and epoch != self.epoch:
            if not (self.suspended and self._former):
                log.warning(
                    "Consul has lost its data; what was known is held and put back",
                    seconds=self._grace,
                    consul=self._api.where,
                )
                self._former = self.epoch
            self._staleness.failed(QUERY, f"{self._api.where} has lost its data; it is being put back")
            self._until = trio.current_time() + self._grace
            self._unsettled.set()
            self._lost()
        if not epoch:
            epoch = " ".join([str(uuid.uuid4()), *self.epoch.split()[:FORMER]])
            if not await self._api.put(EPOCH, epoch.encode(), cas=0):
                return  # another machine was faster, or the key was there all the time: the next look will tell
        self.epoch = epoch

    def went_back(self, *, sure: bool) -> None:
        """Note that Consul has data of an earlier time: what is missing there counts as lost, not as removed.

        Without `sure`, a server that has just started may only be behind for a moment. It is noted all the same: after
        a backup was restored, another machine may have put back its part before this one looks again, and then the
        index is no longer lower.
        """
        self._staleness.failed(QUERY, f"{self._api.where} has older data than before; what is newer is being put back")
        self._unsettled.set()
        if not sure:
            self._until = max(self._until, trio.current_time() + min(DOUBT, self._grace))
            return
        if not self._older:
            log.warning(
                "Consul has older data than before; what is newer is held and put back",
                seconds=self._grace,
                consul=self._api.where,
            )
        self._older = True
        self._former = ""
        self._until = trio.current_time() + self._grace
        self._lost()

    def was_away(self) -> None:
        """Note that agents may have missed heartbeats: for one TTL nothing counts as removed, no machine as dead."""
        self._until = max(self._until, trio.current_time() + TTL)
        self._unsettled.set()

    async def get_over(self, beat: Heartbeat = UNWATCHED) -> None:
        """Return once every machine had the time to put back what was lost."""
        while self.suspended:
            await beat.sleep(min(self.suspended, LOOK))
            try:
                await self.look()
            except RetryError:
                continue
        self._older = False
        self._former = ""
        self._staleness.over(QUERY)

    async def settle_losses(
        self,
        settle: Callable[[], Awaitable[bool]],
        beat: Heartbeat = UNWATCHED,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """After each loss, drop what was not put back in time; until cancelled.

        `settle` drops it, and returns False when it has to be called again.
        """
        task_status.started()
        while True:
            await beat.wait(self._unsettled)
            await self.get_over(beat)
            await beat.sleep(LOOK)
            if not self._staleness.held and await settle():
                self._unsettled = trio.Event()

    async def confirm_own(self, beat: Heartbeat = UNWATCHED) -> None:
        """Hold what is known until Consul shows this machine: to a token that may not read, the mesh looks empty."""
        for attempt in count(1):
            await beat.sleep(APPEARS.after(attempt))
            try:
                self.check_own((await self._api.health(MESHBOX))[1])
            except RetryError as error:
                if attempt >= len(APPEARS):
                    self._staleness.failed(OWN, error)
            else:
                self._staleness.over(OWN)
                return

    async def merge(
        self,
        known: Mapping[_K, _V],
        found: Mapping[_K, _V],
        again: Callable[[], Awaitable[Mapping[_K, _V]]] | None = None,
    ) -> dict[_K, _V]:
        """Return what is to be known after an answer of `found`, where `known` was known. Raises RetryError.

        `again` asks once more, since the first answer may be from the last moment of some trouble.
        """
        if known.keys() - found.keys():
            await self.look()
            if self.suspended:
                return {**known, **found}
            self.check_own((await self._api.health(MESHBOX))[1])
            if again is not None:
                found = await again()
        return dict(found)

    def check_own(self, machines: Iterable[Mapping[str, Any]]) -> None:
        """Raise RetryError unless this machine is among these entries of a health query."""
        if not any(service_id(entry) == self._own for entry in machines):
            raise RetryError(
                f'{self._api.where} does not show "{self._own}", which is this machine',
                'if this lasts, our token\'s policy lacks service_prefix "" { policy = "read" } or node_prefix ""'
                ' { policy = "read" }',
            )
