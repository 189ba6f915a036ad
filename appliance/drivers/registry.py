"""Where specs are kept and how machines find each other: one face, with the embedded store or Consul behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from appliance.drivers.localstore import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from appliance.drivers.registryfacts import RegistryFacts
    from appliance.model.facts import Allocations
    from appliance.model.network import Registration
    from appliance.model.spec import Service


class Registry(Protocol):
    """Keeps specs, announces what this machine serves, and tells what the others do.

    Calls raise RetryError when the registry cannot be reached, and HostError when it refuses for good. Every change of
    `facts` rings the bell that the registry was made with.
    """

    facts: RegistryFacts

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep `facts` true until cancelled. Started once they were read (or, failing that, taken from disk)."""

    async def put_spec(self, service: Service) -> None:
        """Deploy: store the service's spec; a tombstone in its place goes."""

    async def remove_spec(self, name: str) -> bool:
        """Put a tombstone in place of the spec. Return False when there is no such service."""

    async def keep_allocations(self, allocations: Allocations) -> None:
        """Write this machine's virtual IPs and proxy ports to disk."""

    async def register(self, registration: Registration) -> None:
        """Announce that this machine serves a destination; again with another weight when that changes."""

    async def deregister(self, registration: Registration) -> None:
        """Withdraw an announcement."""

    def watch(self, services: frozenset[str]) -> None:
        """Name the services whose endpoints on other machines are of interest; replaces the former set."""


def open_registry(*, state_dir: Path, bell: Callable[[], None]) -> Registry:
    """Return the registry that the configuration asks for; its `run()` connects it."""
    return LocalStore(state_dir, bell=bell)
