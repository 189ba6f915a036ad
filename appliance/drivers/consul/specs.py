"""Deployed specs in Consul's key/value store, with a tombstone in place of each removed one.

The later change wins, by its own time stamp, which never goes backwards for one service whatever the clocks say. What
is missing or older in Consul than here is put back: a spec ends by its tombstone only.

That holds for what was heard from this Consul. What the embedded store kept before, or another Consul, is no evidence
about this one: of that only services are put in that this Consul knows nothing of, and its own ones count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.consul.codec import StoredSpec, dump_spec, parse_spec
from appliance.drivers.consul.transport import ConsulError
from appliance.errors import HostError, InputError, RetryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.drivers.consul.api import ConsulApi
    from appliance.model.spec import Service

log = structlog.get_logger()

FOLDER = "specs/"
LIFE = 30 * 24 * 3600.0
"""Seconds by which the newest change is later than a tombstone that is removed itself: longer than a machine that runs
the service should be away. No clock is asked, so that all machines agree whatever theirs say."""
STEP = 0.001
"""Seconds that a change is later than the one before it, at least."""
TRIES = 5
RESEND = 2.0
"""Seconds until a change that Consul did not take is sent again."""


class Specs:
    """All specs and tombstones by service, as known here and in Consul."""

    def __init__(self, api: ConsulApi, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        """`clock` gives seconds since the epoch. `changed` is called after every change of what is known."""
        self._api = api
        self._clock = clock
        self._changed = changed
        self.known: dict[str, StoredSpec] = {}
        self.foreign: dict[str, str] = {}
        """Complaints about keys that are left alone, by service."""
        self.unsent: set[str] = set()
        """Services whose last change Consul does not have yet."""
        self.disowned: set[str] = set()
        """Services of which what is known here does not come from this Consul."""
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
        """When each service was deployed or removed of which what is known comes from this Consul."""
        return {name: stored.changed for name, stored in self.known.items() if name not in self.disowned}

    @property
    def problems(self) -> tuple[str, ...]:
        """Keys that are left alone, and changes that Consul does not have yet, in words."""
        unsent = (f'the last change of service "{name}" waits for Consul' for name in sorted(self.unsent))
        return (*sorted(self.foreign.values()), *unsent)

    def restore(
        self, specs: Mapping[str, Service], tombstones: Mapping[str, float], changed: Mapping[str, float]
    ) -> None:
        """Take over what was known before the start.

        `changed` says when each service was deployed or removed of which what is known comes from Consul. The others
        are disowned.
        """
        for name, service in specs.items():
            self.known[name] = StoredSpec(service=service, changed=changed.get(name, 0.0))
        for name, when in tombstones.items():
            self.known[name] = StoredSpec(service=None, changed=changed.get(name, when))
        self.disowned = self.known.keys() - changed.keys()

    async def took(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        """Take in all keys of the folder, and put back what they lack. Raises RetryError."""
        found, foreign = _parsed(values, self._api.key(FOLDER))
        before = dict(self.known)
        self._judge_strange(found, foreign)
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
        """Take all that is known for strange, but for what was changed since the start."""
        self.disowned |= self.known.keys() - self.unsent

    def _judge_strange(self, found: Mapping[str, StoredSpec], foreign: Mapping[str, str]) -> None:
        for name in sorted(self.disowned & self.known.keys()):
            mine, theirs = self.known.pop(name), found.get(name)
            if theirs is not None or name in foreign:
                if theirs is None or theirs.service != mine.service:
                    log.warning("Consul has its own state of a service; the one kept here is dropped", service=name)
            elif mine.service is not None:
                log.info("a service that only this machine knew is put into Consul", service=name)
                # Whatever else anybody says of it is later.
                self.known[name] = replace(mine, changed=0.0, index=0)
        self.disowned.clear()

    def again(self) -> None:
        """Compare with Consul soon: it may have lost something that the watch does not show yet."""
        self._resend.set()

    async def resend(self) -> None:
        """Send what Consul does not have yet, until cancelled."""
        while True:
            await self._resend.wait()
            self._resend = trio.Event()
            await trio.sleep(RESEND)
            try:
                await self.took((await self._api.values(FOLDER))[1])
            except RetryError:
                self._resend.set()  # the watch on the folder reports it

    async def _forget(self, name: str, theirs: StoredSpec | None) -> None:
        if theirs is None or await self._api.delete(FOLDER + name, cas=theirs.index):
            del self.known[name]
            self._changed()

    async def put(self, name: str, service: Service | None) -> None:
        """Deploy a service, or with None remove it. When Consul is away, it is known here and sent later.

        Raises HostError when Consul has a spec there that is not ours to replace, RetryError when it refuses.
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
                    if mine.changed >= self._time_of(name):  # else the watch has told of a successor meanwhile
                        self._keep(name, mine)
                    return
            except InputError as error:
                raise HostError(str(error)) from error
            except ConsulError as error:
                if error.refused:
                    raise
                self._is_unsent(name)
                self._keep(name, StoredSpec(service=service, changed=max(self._clock(), self._time_of(name) + STEP)))
                return
        raise RetryError(f'"{name}" is being changed by others at the same time; try again')

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
    """Return specs and complaints by service; of keys in folders below, complaints by their names there."""
    found: dict[str, StoredSpec] = {}
    foreign: dict[str, str] = {}
    for key, (value, index) in values.items():
        name = key.removeprefix(folder)
        if "/" in name:
            foreign[name] = f'key "{key}" in Consul is no spec of ours; it is left alone'
            continue
        try:
            found[name] = parse_spec(key, value, index)
        except InputError as error:
            foreign[name] = str(error)
    return found, foreign
