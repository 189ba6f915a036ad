"""A timer that is waited for like a socket."""

from __future__ import annotations

import select
import time

from tcpworld import open_descriptors

from appliance.dataplane.loop.timerfd import Timerfd

DEADLINE = 5.0


def test_it_becomes_readable_after_its_time_and_stays_so() -> None:
    """Until it is set again; before it was ever set it is silent."""
    timer = Timerfd()
    assert select.select([timer.fd], [], [], 0)[0] == []
    began = time.monotonic()
    timer.set(0.02)
    assert select.select([timer.fd], [], [], DEADLINE)[0] == [timer.fd]
    assert time.monotonic() - began >= 0.02
    assert select.select([timer.fd], [], [], 0)[0] == [timer.fd]
    timer.set(0.9)
    assert select.select([timer.fd], [], [], 0)[0] == []
    timer.close()


def test_closing_gives_the_descriptor_back() -> None:
    """Nothing is left over."""
    before = open_descriptors()
    timer = Timerfd()
    assert open_descriptors() == before + 1
    timer.close()
    assert open_descriptors() == before
