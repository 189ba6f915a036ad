"""A machine is cut off from the others for a minute."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from cluster import Load
from machine import IMAGE, wait_until
from meshworld import WHERE, heard, spread, wait_until_agreed

if TYPE_CHECKING:
    from cluster import Cluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def test_cut_off_machine_goes_on_and_agrees_again(trio: Cluster) -> None:
    """For 60 s nothing gets through to one machine: both sides serve what they reach; healed, they agree in 15 s."""
    one, _, three = trio.machines
    names = one.client("client", "resolve", "server.trio")
    three.run_container("inside", IMAGE, service="near", container="client", connect_to="server.trio")
    wait_until(lambda: len(heard(three, client="inside")) == 3, "the other client reaches all")
    before = {machine.node: machine.containers("label=meshbox.service=trio") for machine in trio}
    with Load(one, "client", *WHERE) as outside, Load(three, "inside", *WHERE) as inside:
        trio.cut_off(three)
        cut = time.monotonic()
        while time.monotonic() < cut + 60:
            assert one.client("client", "resolve", "server.trio") == names
            assert three.client("inside", "resolve", "server.trio") == names
            for machine in trio:
                assert set(before[machine.node]) <= set(machine.containers("label=meshbox.service=trio"))
            threading.Event().wait(2)
        trio.heal()
        wait_until_agreed(trio, seconds=15)
        wait_until(lambda: spread(trio) == [1, 1, 1], "each has its own replica", seconds=40)
        assert one.client("client", "resolve", "server.trio") == names
        assert three.client("inside", "resolve", "server.trio") == names
    three.docker("rm", "--force", "inside")
    assert outside.failures == []
    assert inside.failures == []
