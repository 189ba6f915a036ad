"""Asks the Consul agent, while facts are held, to contact the agents again that it takes for failed.

After a network cut Consul itself tries that only every 30 s. And the servers on the greater side drop from their list
the one that was cut off, so that they never look for it. Only agents that were joined before are joined.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.errors import RetryError

if TYPE_CHECKING:
    from appliance.drivers.consul.api import ConsulApi
    from appliance.drivers.consul.staleness import Staleness

log = structlog.get_logger()

PERIOD = 3.0
"""Seconds between attempts."""
PATIENCE = 3.0
"""Seconds that an attempt may take. Consul itself gives up after ten."""
AT_ONCE = 3
"""Number of agents that are tried at the same time. One that answers tells of all others."""


async def rejoin(api: ConsulApi, staleness: Staleness) -> None:
    """Contact failed agents for as long as facts are held; until cancelled."""
    while True:
        await trio.sleep(PERIOD)
        if not staleness.held:
            continue
        try:
            failed = await api.failed_agents()
        except RetryError as error:
            log.debug("cannot ask Consul for failed agents", cause=str(error))
            continue
        async with trio.open_nursery() as nursery:
            for address in random.sample(failed, min(AT_ONCE, len(failed))):
                nursery.start_soon(_join, api, address)


async def _join(api: ConsulApi, address: str) -> None:
    with trio.move_on_after(PATIENCE):
        try:
            await api.join(address)
        except RetryError as error:
            log.debug("the Consul agent cannot contact another one", agent=address, cause=str(error))
