"""Where specs are kept and how machines find each other: one interface over the embedded store and Consul."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from appliance.drivers.local.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address

    from appliance.config.options import Config
    from appliance.heartbeat import Part
    from appliance.model.facts import Allocations, Endpoint
    from appliance.model.network import Registration
    from appliance.model.registry import Interests, RegistryFacts
    from appliance.model.spec import Service


class Registry(Protocol):
    """Keeps specs, announces what this machine serves, and tells what other machines serve.

    Calls raise RetryError when the registry cannot be reached, and HostError when it refuses for good. Every change of
    `facts` rings the bell that the registry was made with.
    """

    @property
    def facts(self) -> RegistryFacts:
        """What is known now."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """What keeps `facts` true. All have started once facts were read, or taken from disk where that fails."""

    async def close(self) -> None:
        """Let go of everything once the parts have ended. Never fails."""

    async def put_spec(self, service: Service) -> None:
        """Deploy a service: store its spec in place of a former one or of a tombstone."""

    async def remove_spec(self, name: str) -> bool:
        """Put a tombstone in place of the spec. Return False when there is no such service."""

    async def keep_allocations(self, allocations: Allocations) -> None:
        """Write this machine's virtual IPs and proxy ports to disk."""

    async def register(self, registration: Registration) -> None:
        """Announce that this machine serves a destination. Called again when its weight changes."""

    async def deregister(self, registration: Registration) -> None:
        """Withdraw an announcement."""

    def claim(self, claims: frozenset[str]) -> None:
        """Announce with this machine the replicas that no other may run any more; replaces the former set."""

    async def withdraw(self) -> None:
        """Withdraw all announcements before the appliance ends. The machine itself stays known for a while."""

    async def look(self, interests: Interests) -> tuple[Endpoint, ...]:
        """Return what other machines serve of these services: as known where they are watched, else asked for now.

        Never fails: what cannot be asked for is left out.
        """

    def watch(self, interests: Interests) -> None:
        """Name the services whose endpoints on other machines are of interest; replaces the former ones."""


def open_registry(
    config: Config, *, bell: Callable[[], None], address: IPv4Address | None = None, gateway: bool = False
) -> Registry:
    """Return the registry that the configuration asks for; its parts connect it.

    `address` is where other machines reach this one; without it, the address of the Consul agent. A `gateway` runs no
    containers, and none are placed here. Raises HostError when a file that the configuration names cannot be used.
    """
    state_dir = Path(config.state_dir)
    if config.registry == "consul":
        from appliance.drivers.consul.registry import ConsulRegistry  # noqa: PLC0415 — 6 MB that a machine alone does not need

        return ConsulRegistry(
            config.consul,
            node=config.node,
            meta=config.meta,
            address=address,
            gateway=gateway,
            allows=config.allows,
            proxy_ports=config.proxy_ports,
            state_dir=state_dir,
            bell=bell,
        )
    return LocalStore(state_dir, bell=bell)
