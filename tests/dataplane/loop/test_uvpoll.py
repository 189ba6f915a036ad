"""What a uvloop waits for."""

from __future__ import annotations

import asyncio
import select
import socket
from pathlib import Path

import pytest
import uvloop

from appliance.dataplane.loop.uvpoll import UvPoll


def test_the_descriptor_is_the_loops_epoll_set() -> None:
    """It is readable when a socket is that the loop watches."""
    loop = uvloop.new_event_loop()
    one, other = socket.socketpair()
    with one, other:
        heard: list[bytes] = []
        loop.add_reader(one, lambda: heard.append(one.recv(9)))
        loop.run_until_complete(asyncio.sleep(0))
        poll = UvPoll(loop)
        assert "eventpoll" in str(Path("/proc/self/fd", str(poll.fd)).readlink())
        assert select.select([poll.fd], [], [], 0)[0] == []
        other.send(b"?")
        assert select.select([poll.fd], [], [], 5)[0] == [poll.fd]
        loop.run_until_complete(asyncio.sleep(0.001))
        assert heard == [b"?"]
        loop.remove_reader(one)
    loop.close()


@pytest.mark.parametrize(("seconds", "milliseconds"), [(None, range(-1, 0)), (60.0, range(59_000, 60_001))])
def test_the_timeout_is_that_of_the_next_timer(seconds: float | None, milliseconds: range) -> None:
    """Asked from a callback, as the data plane does; 0 when another callback is due."""
    loop = uvloop.new_event_loop()
    poll = UvPoll(loop)
    one, other = socket.socketpair()
    told: list[int] = []

    def readable() -> None:
        one.recv(9)
        told.append(poll.timeout())
        loop.call_soon(loop.stop)
        told.append(poll.timeout())

    with one, other:
        loop.add_reader(one, readable)
        if seconds is not None:
            loop.call_later(seconds, loop.stop)
        other.send(b"?")
        loop.run_forever()
        loop.remove_reader(one)
    loop.close()
    assert told[0] in milliseconds
    assert told[1] == 0
