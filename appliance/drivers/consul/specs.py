"""Deployed specs in Consul's key/value store, with a tombstone in place of each removed one.

The later change wins, by its own time stamp, which never goes backwards for one service whatever the clocks say. What
is missing in Consul, or older than here, is put back: only a tombstone ends a spec.

That applies to what was heard from this Consul. What came from the embedded store or from another Consul is disowned:
it is no evidence about this one. Of that, only services that this Consul does not know are put into it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.consul.codec import MAX_COMPLAINTS, StoredSpec, dump_spec, parse_spec
from appliance.drivers.consul.transport import ConsulError
from appliance.errors import HostError, InputError, RetryError, cause
from appliance.heartbeat import UNWATCHED
from appliance.text import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.drivers.consul.api import ConsulApi
    from appliance.heartbeat import Heartbeat
    from appliance.model.spec import Service

log = structlog.get_logger()

FOLDER = "specs/"
LIFE = 30 * 24 * 3600.0
"""Seconds from a tombstone to the newest change after which the tombstone is removed: longer than a machine that runs
the service should be away. The clock is not asked, so that all machines agree whatever their clocks say."""
STEP = 0.001
"""Least number of seconds from one change of a service to the next."""
TRIES = 5
"""Attempts to write a spec that other machines change at the same time."""
RESEND = 2.0
"""Seconds until a change that Consul did not take is sent again."""


class Specs:
    """All specs and tombstones by service, as known here and in Consul."""

    def __init__(self, api: ConsulApi, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        """Know nothing yet. `clock` gives Unix time in seconds. Call `changed` after every change of what is known."""
        self._api = api
        self._clock = clock
        self._changed = changed
        self.known: dict[str, StoredSpec] = {}
        self.foreign: dict[str, str] = {}
        """Complaints about keys that are left alone, by service."""
        self.unsent: set[str] = set()
        """Services whose last change Consul does not have yet."""
        self.disowned: set[str] = set()
        """Services of which the known spec or tombstone does not come from this Consul."""
        self._resend = trio.Event()

    @property
    def deployed(self) -> dict[str, Service]:
        """The services that are deployed, by name."""
        return {name: stored.service for name, stored in self.known.items() if stored.service is not None}

    @property
    def tombstones(self) -> dict[str, float]:
        """When the other services were removed."""
        return {name: stored.changed for name, stored in self.known.items() if stored.service is None}

    @property
    def times(self) -> dict[str, float]:
        """When each service that is not disowned was deployed or removed."""
        return {name: stored.changed for name, stored in self.known.items() if name not in self.disowned}

    @property
    def problems(self) -> tuple[str, ...]:
        """Keys that are left alone, and changes that Consul does not have yet, in words."""
        unsent = (f'the last change of service "{name}" waits for Consul' for name in sorted(self.unsent))
        foreign = sorted(self.foreign.values())
        more = len(foreign) - MAX_COMPLAINTS
        others = (f"{more} more keys in Consul are left alone",) if more > 0 else ()
        return (*foreign[:MAX_COMPLAINTS], *others, *unsent)

    def restore(
        self, specs: Mapping[str, Service], tombstones: Mapping[str, float], changed: Mapping[str, float]
    ) -> None:
        """Take over what was known before the start.

        `changed` says when services were deployed or removed. Those that it does not name are disowned.
        """
        for name, service in specs.items():
            self.known[name] = StoredSpec(service=service, changed=changed.get(name, 0.0))
        for name, when in tombstones.items():
            self.known[name] = StoredSpec(service=None, changed=changed.get(name, when))
        self.disowned = self.known.keys() - changed.keys()

    async def took(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        """Take in all keys of the folder, and put back what is missing or older there. Raises RetryError."""
        found, foreign = _parsed(values, self._api.key(FOLDER))
        before = dict(self.known)
        self._judge_disowned(found, foreign)
        for name, stored in found.items():
            mine = self.known.get(name)
            if mine is None or stored.changed >= mine.changed:
                self.known[name] = stored
                self.unsent.discard(name)
        if self.known != before or foreign != self.foreign:
            self.foreign = foreign
            self._changed()
        newest = max((stored.changed for stored in self.known.values()), default=0.0)
        for name in self.known.keys() - foreign.keys():
            mine, theirs = self.known[name], found.get(name)
            if mine.service is None and newest - mine.changed > LIFE:
                await self._forget(name, theirs)
            elif theirs is None or theirs.changed < mine.changed:
                self._is_unsent(name)
                if await self._api.put(FOLDER + name, dump_spec(mine), cas=theirs.index if theirs else 0):
                    self.unsent.discard(name)
                    self._changed()

    def disown(self) -> None:
        """Note that nothing that is known comes from this Consul, except for changes since the start."""
        self.disowned |= self.known.keys() - self.unsent

    def _judge_disowned(self, found: Mapping[str, StoredSpec], foreign: Mapping[str, str]) -> None:
        for name in sorted(self.disowned & self.known.keys()):
            mine, theirs = self.known.pop(name), found.get(name)
            if theirs is not None or name in foreign:
                if theirs is None or theirs.service != mine.service:
                    log.warning("Consul has another state of a service; the one kept here is dropped", service=name)
            elif mine.service is not None:
                log.info("a service that only this machine knows is put into Consul", service=name)
                # Any change by another machine counts as later.
                self.known[name] = replace(mine, changed=0.0, index=0)
        self.disowned.clear()

    def again(self) -> None:
        """Compare with Consul soon: it may have lost specs that the watch does not show yet."""
        self._resend.set()

    async def resend(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Send the changes that Consul does not have yet; until cancelled."""
        task_status.started()
        while True:
            await beat.wait(self._resend)
            try:
                await beat.sleep(RESEND)
                self._resend = trio.Event()
                await self.took((await self._api.values(FOLDER))[1])
            except RetryError:
                self._resend.set()  # the watch on the folder reports it
            except BaseException:
                self._resend.set()  # whoever does this next has it to do
                raise

    async def _forget(self, name: str, theirs: StoredSpec | None) -> None:
        if theirs is None or await self._api.delete(FOLDER + name, cas=theirs.index):
            del self.known[name]
            self._changed()

    async def put(self, name: str, service: Service | None) -> None:
        """Deploy a service, or remove it with None. While Consul is away, the change is known here and sent later.

        Raises HostError when the key in Consul is not a spec that this version may replace, RetryError when Consul
        refuses.
        """
        for _ in range(TRIES):
            try:
                found = await self._api.value(FOLDER + name)
                theirs = parse_spec(name, *found) if found else None
                if theirs is not None and theirs.changed > self._time_of(name):
                    self.known[name] = theirs
                mine = StoredSpec(service=service, changed=max(self._clock(), self._time_of(name) + STEP))
                if await self._api.put(FOLDER + name, dump_spec(mine), cas=theirs.index if theirs else 0):
                    self.unsent.discard(name)
                    self._changed()
                    if mine.changed >= self._time_of(name):  # otherwise the watch has told of a later change meanwhile
                        self._keep(name, mine)
                    return
            except InputError as error:
                raise HostError(error.words, error.remedy) from error
            except ConsulError as error:
                if error.refused:
                    raise
                self._is_unsent(name)
                self._keep(name, StoredSpec(service=service, changed=max(self._clock(), self._time_of(name) + STEP)))
                return
        raise RetryError(f'"{name}" is being changed by others at the same time', "try again")

    async def remove(self, name: str) -> bool:
        """Remove a service; return False when there is none. Raises what `put` does."""
        if name not in self.deployed:
            return False
        await self.put(name, None)
        return True

    def _is_unsent(self, name: str) -> None:
        self.unsent.add(name)
        self._resend.set()

    def _time_of(self, name: str) -> float:
        known = self.known.get(name)
        return known.changed if known is not None else 0.0

    def _keep(self, name: str, stored: StoredSpec) -> None:
        self.known[name] = stored
        self.disowned.discard(name)
        self._changed()


def _parsed(values: Mapping[str, tuple[bytes, int]], folder: str) -> tuple[dict[str, StoredSpec], dict[str, str]]:
    """Return specs and complaints by service. A key in a folder below is a complaint by its path there."""
    found: dict[str, StoredSpec] = {}
    foreign: dict[str, str] = {}
    for key, (value, index) in values.items():
        name = key.removeprefix(folder)
        if "/" in name:
            foreign[name] = f"key {quoted(key)} in Consul is no spec of ours; it is left alone"
            continue
        try:
            found[name] = parse_spec(key, value, index)
        except Exception as error:  # noqa: BLE001 — anybody may write anything into Consul
            foreign[name] = cause(error)
    return found, foreign
