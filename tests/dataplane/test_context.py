"""What listeners and doors of one process share."""

from __future__ import annotations

import uvloop
from tcpworld import open_descriptors

from appliance.dataplane.context import Context


def test_closing_gives_everything_back() -> None:
    """No file descriptor is left, and the loop has nothing to do any more."""
    loop = uvloop.new_event_loop()
    loop.run_until_complete(_nothing())
    before = open_descriptors()
    context = Context(loop)
    pipe = context.pipes.take()
    assert pipe is not None
    context.pipes.give(pipe)
    assert open_descriptors() > before
    context.close()
    loop.run_until_complete(_nothing())
    assert open_descriptors() == before
    loop.close()


async def _nothing() -> None:
    """Let the loop turn."""
