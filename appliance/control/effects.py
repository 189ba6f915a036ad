"""Steps become deeds here: the reconcile loop's hands on the data plane, nft, the state file and the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import identity as namespaces
from appliance.errors import RetryError
from appliance.model import state as st
from appliance.model.network import Netns
from appliance.render import ruleset as text

if TYPE_CHECKING:
    from appliance.control.doors import Doors
    from appliance.dataplane.api import DataPlane
    from appliance.drivers.nft.client import Nft, NftHelper
    from appliance.drivers.nft.drift import RulesetWatch
    from appliance.drivers.registry import Registry


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
    ) -> None:
        self._plane = plane
        self._doors = doors
        self._nft = nft
        self._nft_helper = nft_helper
        self._watch = watch
        self._registry = registry
        self._rendering = trio.Lock()
        """One ruleset is written at a time, and traffic has its turn after each."""

    async def carry_out(self, step: st.Step) -> None:  # noqa: C901 — one case per kind of step reads best in one place
        """Do what the step says. Raises OSError or MeshboxError; then the world is as before, or unknown."""
        match step:
            case st.KeepAllocations():
                await self._registry.keep_allocations(step.allocations)
            case st.OpenListener():
                self._plane.open_listener(step.listener)
            case st.SwapListener():
                self._plane.swap_listener(step.after)
            case st.CloseListener():
                # Nobody may reach it, or nothing serves it any more: what is left ends too.
                self._plane.close_listener(step.listener.destination)
                self._plane.end_pairs(step.listener.destination)
            case st.SetDnsAddresses():
                self._plane.set_dns_addresses(step.after)
            case st.SetZone():
                self._plane.set_zone(step.zone)
            case st.PushHostRuleset():
                await self._push_host_ruleset(step)
            case st.PushRuleset():
                await self._push_ruleset(step)
            case st.DropRuleset():
                await self._drop_ruleset(step.ruleset.netns)
            case st.Register():
                await self._registry.register(step.registration)
            case st.Deregister():
                await self._registry.deregister(step.registration)

    async def _push_host_ruleset(self, step: st.PushHostRuleset) -> None:
        await self._nft_helper.command(text.change_host(step.before, step.after))
        identity = namespaces.identify(namespaces.HOST)
        if identity is not None:
            self._watch.add(Netns(id=identity, path=namespaces.HOST))

    async def _push_ruleset(self, step: st.PushRuleset) -> None:
        after, netns = step.after, step.after.netns
        async with self._rendering:
            change = text.change_workload(step.before, after)
        await self._nft.push(netns.path, change)
        if step.before is None:
            self._watch.add(netns)
        if after.internal:
            await namespaces.wait_neighbour(netns.path, after.proxy)  # a starting container's interface is up in 100 ms
            await namespaces.ensure_route(netns.path, after.vip_range, after.proxy)
        self._doors.keep(after, netns, anew=step.before is None)

    async def _drop_ruleset(self, netns: Netns) -> None:
        """Remove the table from a namespace, if that still exists."""
        self._watch.remove(netns.id)
        await self._doors.drop(netns)
        try:
            if namespaces.identify(netns.path) == netns.id:
                await self._nft.push(netns.path, text.REMOVE)
        except RetryError:
            if namespaces.identify(netns.path) == netns.id:
                raise  # otherwise the namespace went meanwhile, and its table with it
