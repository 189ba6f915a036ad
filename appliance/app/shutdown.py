"""Waiting for connections to end before the appliance does, and saying how far that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()

POLL = 0.05
"""Seconds between looks at how many connections are left: the data plane has no events of Trio."""
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
