"""A machine is cut off from the others for a minute."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from cluster import Census, Kept, Load
from machine import wait_until
from meshworld import WHERE, heard, name_of, spread, wait_until_agreed

from appliance.drivers.consulcodec import TTL

if TYPE_CHECKING:
    from cluster import Cluster, Member

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def test_cut_off_machine_goes_on_and_agrees_again(trio: Cluster) -> None:
    """For 60 s nothing gets through to one machine: both sides serve what they reach; healed, they agree in 15 s."""
    one, _, three = trio.machines
    before = [identities(machine) for machine in trio]
    with (
        Census(trio, "trio") as census,
        Load(one, "client", *WHERE) as outside,
        Load(three, "client", *WHERE) as inside,
        Kept(one, "client", *WHERE, tcp=6, udp=4) as kept,
        Kept(three, "client", *WHERE, tcp=6, udp=4) as within,
    ):
        far, near = name_of(three), [name_of(machine) for machine in trio.machines[:2]]
        trio.cut_off(three)
        cut = time.monotonic()
        wait_until(lambda: spread(trio)[:2] in ([1, 2], [2, 1]), "the greater side replaces what it lost", seconds=40)
        while time.monotonic() < cut + 60:
            for machine, has in zip(trio, before, strict=True):
                assert has <= identities(machine), "nothing is retired while the other side is away"
            threading.Event().wait(2)
        trio.heal()
        healed = time.monotonic()
        wait_until_agreed(trio, seconds=15)
        wait_until(lambda: spread(trio) == [1, 1, 1], "each has its own replica", seconds=40)
        for machine in (one, three):
            wait_until(lambda m=machine: len(heard(m)) == 3, "all answer")
    assert [identities(machine) for machine in trio] == before, "what both sides kept was not replaced"
    for load in (outside, inside):
        assert load.failures == []
        assert len(load.addresses) == 1, "the name never led anywhere else"
    assert kept.broken(far) == []
    assert within.broken(*near) == []
    assert census.longest(cut=(cut, healed)) <= TTL, census.overlaps
    assert all(waiting <= 64 for waiting in census.queries.values())


def identities(machine: Member) -> set[tuple[str, str]]:
    """Return id and time of start of each replica that runs here."""
    found = [machine.inspect(one) for one in machine.containers("label=meshbox.service=trio", "status=running")]
    return {(one["Id"], one["State"]["StartedAt"]) for one in found}
