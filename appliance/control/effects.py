"""Steps become deeds here: the reconcile loop's hands on the data plane, nft, the state file and the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import identity, routes
from appliance.errors import RetryError
from appliance.model.facts import Netns
from appliance.render import ruleset as text

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from appliance.control.doors import Doors
    from appliance.dataplane.api import DataPlane
    from appliance.drivers.nft.client import Nft
    from appliance.drivers.nft.drift import RulesetWatch
    from appliance.drivers.nft.helper import NftHelper
    from appliance.drivers.registry import Registry
    from appliance.model.facts import Allocations
    from appliance.model.names import Destination
    from appliance.model.network import HostRuleset, Listener, Registration, WorkloadRuleset, Zone


class HostEffects:
    """Carries out steps on this host (`reconcile.Effects`)."""

    def __init__(
        self,
        *,
        plane: DataPlane,
        doors: Doors,
        nft: Nft,
        nft_helper: NftHelper,
        watch: RulesetWatch,
        registry: Registry,
    ) -> None:
        self._plane = plane
        self._doors = doors
        self._nft = nft
        self._nft_helper = nft_helper
        self._watch = watch
        self._registry = registry
        self._rendering = trio.Lock()
        """One ruleset is written at a time, and traffic has its turn after each."""

    def open_listener(self, listener: Listener) -> None:
        """Open a socket on the listener's port and serve it."""
        self._plane.open_listener(listener)

    def swap_listener(self, listener: Listener) -> None:
        """Give an open listener new callers, peers and backends."""
        self._plane.swap_listener(listener)

    def close_listener(self, destination: Destination) -> None:
        """Stop accepting and end what is left: nobody may reach it, or nothing serves it any more."""
        self._plane.close_listener(destination)
        self._plane.end_pairs(destination)

    def set_dns_addresses(self, addresses: frozenset[IPv4Address]) -> None:
        """Serve DNS on exactly these addresses."""
        self._plane.set_dns_addresses(addresses)

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone."""
        self._plane.set_zone(zone)

    async def push_host_ruleset(self, before: HostRuleset | None, after: HostRuleset) -> None:
        """Bring the host's own table to `after`."""
        await self._nft_helper.command(text.change_host(before, after))
        netns_id = identity.identify(identity.HOST)
        if netns_id is not None:
            self._watch.add(Netns(id=netns_id, path=identity.HOST))

    async def push_ruleset(self, before: WorkloadRuleset | None, after: WorkloadRuleset, netns: Netns) -> None:
        """Bring the table in a workload's namespace to `after`."""
        async with self._rendering:
            change = text.change_workload(before, after)
        await self._nft.push(netns.path, change)
        if before is None:
            self._watch.add(netns)
        if after.internal:
            await routes.wait_neighbour(netns.path, after.proxy)  # a starting container's interface is up in 100 ms
            await routes.ensure_route(netns.path, after.vip_range, after.proxy)
        self._doors.keep(after, netns, anew=before is None)

    async def drop_ruleset(self, netns: Netns) -> None:
        """Remove the table from a namespace, if that still exists."""
        self._watch.remove(netns.id)
        await self._doors.drop(netns)
        try:
            if identity.identify(netns.path) == netns.id:
                await self._nft.push(netns.path, text.REMOVE)
        except RetryError:
            if identity.identify(netns.path) == netns.id:
                raise  # otherwise the namespace went meanwhile, and its table with it

    async def keep_allocations(self, allocations: Allocations) -> None:
        """Write virtual IPs and proxy ports to disk."""
        await self._registry.keep_allocations(allocations)

    async def register(self, registration: Registration) -> None:
        """Announce a destination."""
        await self._registry.register(registration)

    async def deregister(self, registration: Registration) -> None:
        """Withdraw an announcement."""
        await self._registry.deregister(registration)
