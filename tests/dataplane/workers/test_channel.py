from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvloop

from appliance.dataplane.workers.channel import Channel


def test_an_end_that_was_speaking_hears_that_the_other_has_gone() -> None:
    """A worker whose parent has gone ends, whether it was sending or not."""
    loop = uvloop.new_event_loop()
    ours, theirs = socket.socketpair()
    over = loop.create_future()
    heard: list[Any] = []
    channel = Channel(loop, ours, take=lambda message, _: heard.append(message), ended=lambda: over.set_result(None))
    theirs.close()
    channel.send("an answer")
    loop.run_until_complete(asyncio.wait_for(over, 5))
    assert heard == []
    channel.send("nothing goes wrong")
    loop.close()
