"""The end of an appliance: connections drain, and a host without containers of the mesh is left as it was."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.app import bridge
from appliance.dataplane.api import LEFT
from appliance.drivers.netns import identity
from appliance.errors import MeshboxError
from appliance.render.ruleset import END_LEASE, REMOVE, REMOVE_BRIDGE, change_host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from appliance.app.parts import Parts

log = structlog.get_logger()

POLL = 0.05
"""Seconds between checks of how many connections are left: the data plane has no events of Trio."""
TELL = 2.0
"""Seconds between lines of the log."""


async def wait_drained(left: Callable[[], Awaitable[int]], seconds: float) -> None:
    """Wait until `left` answers 0, for `seconds` at most."""
    count = await left()
    if not count:
        return
    log.info("draining", connections=count, seconds=round(seconds))
    told = trio.current_time()
    end = told + seconds
    with trio.move_on_at(end):
        while count:
            await trio.sleep(POLL)
            count = await left()
            now = trio.current_time()
            if count and now - told >= TELL:
                told = now
                log.info("still draining", connections=count, seconds=round(end - now))
    if count:
        log.warning("connections are cut off", connections=count, remedy="a longer drain lets them end by themselves")
    else:
        log.info("drained")


async def drain(parts: Parts) -> None:
    """Accept nothing more, and give open connections the configured time to end by themselves."""
    parts.plane.stop()
    await wait_drained(partial(bridge.answer, parts.plane, LEFT), parts.config.drain)


async def leave(parts: Parts) -> None:
    """With no container left in the mesh, leave the host as it was; otherwise the rules about them stay.

    Port claims end now and not only with their lease: whoever stops the appliance may start containers at once.
    """
    rules = parts.reconciler.have.host_ruleset
    parts.lease.stop()
    if parts.reconciler.have.bridge_ruleset is not None:
        await _end_claims(parts)
    if parts.inventory.workloads and (rules is None or rules.visitors is None):
        return
    netns_id = identity.identify(identity.HOST)
    if netns_id is not None:
        parts.drift.remove(netns_id)
    try:
        left = REMOVE
        if parts.inventory.workloads and rules is not None:
            left = change_host(rules, replace(rules, visitors=None))
        await parts.nft_helper.command(left)
    except MeshboxError as error:
        log.warning("the host's table inet meshbox stays; run meshbox cleanup", cause=str(error))


async def _end_claims(parts: Parts) -> None:
    try:
        await parts.nft_helper.command(END_LEASE if parts.inventory.workloads else REMOVE_BRIDGE)
    except MeshboxError as error:
        words = "the port claims of this host's containers end with their lease, in 60 s; or run meshbox cleanup"
        log.warning(words, cause=str(error))
