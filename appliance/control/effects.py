"""Carries out the reconcile loop's steps: on the data plane, in nft, the state file and the registry."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import identity, routes
from appliance.errors import NotYetError, RetryError
from appliance.model import state as st
from appliance.model.network import Netns
from appliance.render import ruleset

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from appliance.control.doors import Doors
    from appliance.dataplane.api import DataPlane
    from appliance.drivers.nft.client import Nft
    from appliance.drivers.nft.drift import RulesetWatch
    from appliance.drivers.nft.helper import NftHelper
    from appliance.drivers.registry import Registry
    from appliance.model.network import NetnsId, VipRoute, WorkloadDoor, WorkloadRuleset


class HostEffects:
    """Carries out steps on this host."""

    def __init__(
        self,
        *,
        plane: DataPlane,
        doors: Doors,
        nft: Nft,
        nft_helper: NftHelper,
        watch: RulesetWatch,
        registry: Registry,
        rules_in_place: Callable[[NetnsId], None] = lambda _: None,
    ) -> None:
        """`rules_in_place` is called with each namespace whose rules were pushed, as soon as they are in force."""
        self._rules_in_place = rules_in_place
        self._plane = plane
        self._doors = doors
        self._nft = nft
        self._nft_helper = nft_helper
        self._watch = watch
        self._registry = registry
        self._rendering = trio.Lock()
        """One ruleset is written at a time, and traffic has its turn after each."""

    async def carry_out(self, step: st.Step) -> None:  # noqa: C901, PLR0912 — one case per kind of step
        """Do what the step says. Raises OSError or MeshboxError; then the world is as before, or unknown."""
        match step:
            case st.KeepAllocations():
                await self._registry.keep_allocations(step.allocations)
            case st.SetSources():
                self._plane.set_sources(step.sources)
            case st.OpenListener():
                self._plane.open_listener(step.listener)
            case st.SwapListener():
                self._plane.swap_listener(step.after)
            case st.CloseListener():
                self._plane.close_listener(step.listener.destination)
                self._plane.end_pairs(step.listener.destination)
            case st.SetDnsAddresses():
                self._plane.set_dns_addresses(step.after)
            case st.SetZone():
                self._plane.set_zone(step.zone)
            case st.PushHostRuleset():
                await self._push_host_ruleset(step)
            case st.PushBridgeRuleset():
                await self._nft_helper.command(ruleset.change_bridge(step.before, step.after))
            case st.DropBridgeRuleset():
                await self._nft_helper.command(ruleset.REMOVE_BRIDGE)
            case st.PushRuleset():
                await self._push_ruleset(step)
            case st.DropRuleset():
                await self._drop_ruleset(step.ruleset)
            case st.AddRoute():
                await self._add_route(step.after)
            case st.DropRoute():
                await self._drop_route(step.route)
            case st.OpenDoor():
                await self._open_door(step.after)
            case st.CloseDoor():
                await self._close_dns_door(step.door.netns)
                await self._doors.close(step.door)
            case st.Register():
                await self._registry.register(step.registration)
            case st.Deregister():
                await self._registry.deregister(step.registration)

    async def _push_host_ruleset(self, step: st.PushHostRuleset) -> None:
        await self._nft_helper.command(ruleset.change_host(step.before, step.after))
        netns_id = identity.identify(identity.HOST)
        if netns_id is not None:
            self._watch.add(Netns(id=netns_id, path=identity.HOST))

    async def _push_ruleset(self, step: st.PushRuleset) -> None:
        after, netns = step.after, step.after.netns
        async with self._rendering:
            change = ruleset.change_workload(step.before, after, dns_inside=netns.id in self._doors.dns)
        # A former appliance may have had a door there, or we one that was forgotten with what was known of its rules.
        if not after.door:
            await self._close_dns_door(netns)
        if not after.door and (step.before is None or netns.id in self._doors.opened):
            await self._doors.clear(netns, after.vip_range)
        await self._nft.push(netns.path, change)
        self._rules_in_place(netns.id)
        if step.before is None:
            self._watch.add(netns)

    async def _drop_ruleset(self, dropped: WorkloadRuleset) -> None:
        """Remove the table from a namespace, if that still exists."""
        netns = dropped.netns
        self._watch.remove(netns.id)
        await self._close_dns_door(netns)
        if netns.id in self._doors.opened:  # as when it could not be led to
            await self._doors.clear(netns, dropped.vip_range)
        await _while_there(netns, partial(self._nft.push, netns.path, ruleset.REMOVE))

    async def _open_door(self, door: WorkloadDoor) -> None:
        """Open a door, and one for DNS beside it. Without the latter questions go to the host."""
        await self._doors.open(door)
        self._doors.dns.open(door.netns, door.door)
        await self._nft.push(door.netns.path, ruleset.LEAD_DNS)

    async def _close_dns_door(self, netns: Netns) -> None:
        """Have questions go to the host again, and answer none in there."""
        if netns.id in self._doors.dns:
            with suppress(RetryError):  # the rules are gone already, or the namespace is
                await self._nft.push(netns.path, ruleset.LEAVE_DNS)
            self._doors.dns.close(netns)

    @staticmethod
    async def _add_route(route: VipRoute) -> None:
        """Add a route where there is none. A starting container's interface, which it leads to, is up in 100 ms."""
        path = route.netns.path
        if not await routes.wait_neighbour(path, route.gateway, timeout=0):
            raise NotYetError(
                f"no interface in network namespace {path} leads to {route.gateway}",
                partial(routes.wait_neighbour, path, route.gateway),
            )
        await routes.add_route(path, route.vip_range, route.gateway)

    @staticmethod
    async def _drop_route(route: VipRoute) -> None:
        await _while_there(route.netns, partial(routes.drop_route, route.netns.path, route.vip_range, route.gateway))


async def _while_there(netns: Netns, undo: Callable[[], Awaitable[None]]) -> None:
    """Undo something inside a namespace, if that still exists: otherwise all that was in it has gone as well."""
    try:
        if identity.identify(netns.path) == netns.id:
            await undo()
    except RetryError:
        if identity.identify(netns.path) == netns.id:
            raise
