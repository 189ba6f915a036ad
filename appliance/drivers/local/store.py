"""The embedded store: one machine's specs, tombstones and allocations in one local file (`Registry`).

With Consul as registry, the allocations stay here, and the specs are a copy for a start without Consul.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from appliance import files
from appliance.drivers.consul import cache
from appliance.drivers.local import statefile
from appliance.drivers.local.statefile import DamagedError, State
from appliance.errors import HostError, RetryError
from appliance.heartbeat import Part
from appliance.model.registry import RegistryFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Allocations, Endpoint
    from appliance.model.network import Registration
    from appliance.model.registry import Interests
    from appliance.model.spec import Service

log = structlog.get_logger()

TOMBSTONE_LIFE = 30 * 24 * 3600.0
"""Seconds after which a removal is forgotten. A machine that still runs the service should not be away for longer."""


class LocalStore:
    """State in `<folder>/state.json`, the same in memory as on disk. Call `load` before anything else."""

    def __init__(
        self, folder: Path, *, bell: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = folder / "state.json"
        self._bell = bell
        self._clock = clock
        self._lock = trio.Lock()
        self._state = State()
        self._loaded = False
        self.facts = RegistryFacts()

    @property
    def specs(self) -> Mapping[str, Service]:
        """The deployed services by name."""
        return self._state.specs

    @property
    def tombstones(self) -> Mapping[str, float]:
        """When removed services were removed."""
        return self._state.tombstones

    @property
    def allocations(self) -> Allocations:
        """Virtual IPs and proxy ports of this machine."""
        return self._state.allocations

    async def load(self) -> None:
        """Read the file. A damaged one is moved aside and reported; its readable part is used.

        Raises HostError when a newer meshbox wrote it or it cannot be read.
        """
        try:
            content = await trio.to_thread.run_sync(files.read, self._path, abandon_on_cancel=True)
            self._state = statefile.load(content, str(self._path))
        except FileNotFoundError:
            self._state = State()
        except DamagedError as error:
            await self._save_readable_part(error)
        except OSError as error:
            raise HostError(f"cannot read {self._path}: {error.strerror}", "check its owner and the disk") from error
        self._loaded = True
        self._publish()

    async def _save_readable_part(self, error: DamagedError) -> None:
        try:
            aside = await trio.to_thread.run_sync(statefile.set_aside, self._path, self._clock())
        except OSError as cause:
            raise HostError(f"{error}; and it cannot be moved aside: {cause.strerror}") from cause
        log.error(
            "the state file is damaged",
            cause=str(error),
            moved_to=str(aside),
            services_left=sorted(error.rest.specs),
            hint="deploy what is missing again; its containers run on untouched meanwhile",
        )
        await self._write(error.rest)

    async def replace_specs(self, specs: Mapping[str, Service], tombstones: Mapping[str, float]) -> None:
        """Store these, for a registry that holds the truth elsewhere. Raises RetryError when the disk refuses."""
        async with self._lock:
            await self._write(replace(self._state, specs=dict(specs), tombstones=dict(tombstones)))

    # -- Registry

    @property
    def parts(self) -> tuple[Part, ...]:
        """Reading the file, once: nothing else changes it."""
        return (Part(name="state file", run=self._start, may_end=True),)

    async def _start(self, _: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        """Read the file. The cache of Consul's state is removed: from now on this file changes without Consul."""
        if not self._loaded:  # from then on the memory is what counts
            await self.load()
        try:
            await trio.to_thread.run_sync(partial((self._path.parent / cache.NAME).unlink, missing_ok=True))
        except OSError as error:
            log.warning("cannot remove the cached state of Consul", cause=str(error))
        task_status.started()

    async def close(self) -> None:
        """Do nothing: nothing is open."""

    async def put_spec(self, service: Service) -> None:
        """Store a service's spec. Raises RetryError when the disk refuses."""
        async with self._lock:
            tombstones = {name: when for name, when in self.tombstones.items() if name != service.name}
            await self._write(replace(self._state, specs={**self.specs, service.name: service}, tombstones=tombstones))

    async def remove_spec(self, name: str) -> bool:
        """Put a tombstone in place of a spec; False when there is none. Raises RetryError when the disk refuses."""
        async with self._lock:
            if name not in self.specs:
                return False
            now = self._clock()
            tombstones = {n: when for n, when in self.tombstones.items() if now - when < TOMBSTONE_LIFE}
            specs = {n: service for n, service in self.specs.items() if n != name}
            await self._write(replace(self._state, specs=specs, tombstones={**tombstones, name: now}))
            return True

    async def keep_allocations(self, allocations: Allocations) -> None:
        """Store virtual IPs and proxy ports. Raises RetryError when the disk refuses."""
        async with self._lock:
            await self._write(replace(self._state, allocations=allocations), ring=False)

    async def register(self, registration: Registration) -> None:
        """Do nothing: no other machine is told."""

    async def deregister(self, registration: Registration) -> None:
        """Do nothing: no other machine was told."""

    def claim(self, claims: frozenset[str]) -> None:
        """Do nothing: no other machine runs anything."""

    async def withdraw(self) -> None:
        """Do nothing: no other machine was told."""

    async def look(self, interests: Interests) -> tuple[Endpoint, ...]:  # noqa: ARG002 — as `Registry` has it
        """Return nothing: there are no other machines."""
        return ()

    def watch(self, interests: Interests) -> None:
        """Do nothing: all that exists is here."""

    async def _write(self, state: State, *, ring: bool = True) -> None:
        if state == self._state and self._path.exists():
            return
        content = statefile.dump(state)
        try:
            # Shielded: a change that reaches the disk must reach the memory too.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._save, content)
        except OSError as error:
            raise RetryError(
                f"cannot write {self._path}: {error.strerror}; check the disk's space and mount"
            ) from error
        self._state = state
        self._publish(ring=ring)

    def _save(self, content: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.replace(self._path, content)

    def _publish(self, *, ring: bool = True) -> None:
        self.facts = RegistryFacts(specs=self.specs, tombstones=self.tombstones, allocations=self.allocations)
        if ring:
            self._bell()
