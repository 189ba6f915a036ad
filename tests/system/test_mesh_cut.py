"""A machine is cut off from the others for a minute, or from its Consul, which is slow first and then says nothing."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from cluster import Between, Census, Kept, Load
from machine import IMAGE, wait_until
from meshworld import WHERE, heard, name_of, names, spread, wait_until_agreed

from appliance.drivers.consul.codec import TTL

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
            wait_until(lambda m=machine: heard(m).keys() == names(*trio), "all answer")
    assert [identities(machine) for machine in trio] == before, "what both sides kept was not replaced"
    for load in (outside, inside):
        assert load.failures == []
        assert len(load.addresses) == 1, "the name never led anywhere else"
    assert kept.broken(far) == []
    assert within.broken(*near) == []
    assert census.longest(cut=(cut, healed)) <= TTL, census.overlaps
    assert all(waiting <= 64 for waiting in census.queries.values())


def test_slow_and_hung_consul(trio: Cluster) -> None:
    """Traffic, names and rules stay, changes here take effect here, since when and why is told; then all heals."""
    one, two, _ = trio.machines
    two.stop()
    with ExitStack() as stack:
        stack.callback(two.start)
        stack.callback(two.stop)
        between = stack.enter_context(Between(two))
        two.start(consul=between.address)
        wait_until_agreed(trio)
        before, rules = identities(two), rules_of(two)
        with (
            Census(trio, "trio") as census,
            Load(one, "client", *WHERE) as outside,
            Load(two, "client", *WHERE) as inside,
            Kept(two, "client", *WHERE, tcp=6, udp=4) as kept,
        ):
            between.consul.delay = 2.0
            change_something(two)
            between.consul.delay = 0.0
            between.tell(between.consul.freeze)
            hung = time.time()
            wait_until(lambda: two.peers["held_since"] is not None, "it is told", seconds=40)
            found = two.show("peers")
            assert hung <= found["held_since"] <= time.time()
            assert "did not answer" in found["held_why"]
            assert between.address in found["held_why"]
            change_something(two)
            wait_until(lambda: two.node not in one.knows, "the others take it for dead", seconds=40)
            wait_until(
                lambda: 0 not in spread(trio)[::2] and sum(spread(trio)[::2]) == 3, "they replace it", seconds=40
            )
            wait_until(lambda: heard(two, 100).keys() == names(*trio), "it still calls all others, and its own")
            assert rules_of(two) == rules
            end = time.monotonic()
            between.tell(between.consul.thaw)
            wait_until_agreed(trio)
            wait_until(lambda: spread(trio) == [1, 1, 1], "each has its own replica", seconds=40)
            for machine in (one, two):
                wait_until(lambda m=machine: heard(m).keys() == names(*trio), "all answer")
        for load in (outside, inside):
            assert load.failures == []
            assert len(load.addresses) == 1, "the name never led anywhere else"
        moved = set(kept.opened) - names(*trio)  # while the others took it for dead
        assert kept.broken(*moved) == []
        assert identities(two) == before, "nothing was replaced"
        assert rules_of(two) == rules
        assert census.longest(cut=(0.0, end)) <= TTL, census.overlaps
        assert all(waiting <= 64 for waiting in census.queries.values())


def test_consul_is_away_for_longer_than_heartbeats_may_fail(trio: Cluster) -> None:
    """All Consul servers are down for 20 s and come back with their data: no machine is taken for dead meanwhile."""
    one, two, _ = trio.machines
    before = [identities(machine) for machine in trio]
    with (
        Census(trio, "trio") as census,
        Load(one, "client", *WHERE) as load,
        Load(two, "client", *WHERE) as other,
        Kept(one, "client", *WHERE, tcp=6, udp=4) as kept,
    ):
        for machine in trio:
            machine.consul.stop()
        wait_until(lambda: all(machine.peers["held_since"] for machine in trio), "what was known is held")
        threading.Event().wait(TTL + 5)
        trio.start_consul()
        wait_until_agreed(trio)
        threading.Event().wait(TTL + 2)  # by then the dead machines are believed to be dead
        wait_until_agreed(trio)
    assert census.doubted() == set()
    assert set(census.replicas) == {"0", "1", "2"}
    assert census.longest() == 0.0, census.overlaps
    assert [identities(machine) for machine in trio] == before
    for one_load in (load, other):
        assert one_load.failures == []
        assert len(one_load.addresses) == 1, "the name never led anywhere else"
    assert kept.broken() == []


def change_something(machine: Member) -> None:
    """Start something that the client here may reach, and stop it again; both takes effect here."""
    machine.run_container("late", IMAGE, service="late", container="server", ports="7000")
    try:
        wait_until(lambda: "EC" not in str(heard(machine, 1, host="server.late")), "it is reached")
    finally:
        machine.docker("rm", "--force", "late")
    wait_until(lambda: "ECONNREFUSED" in heard(machine, 1, host="server.late"), "it is refused")


def rules_of(machine: Member) -> str:
    """Return the host's own table, without what it has counted."""
    return machine.exec("nft", "--stateless", "list", "table", "inet", "meshbox").stdout


def identities(machine: Member) -> set[tuple[str, str]]:
    """Return id and time of start of each replica that runs here."""
    found = [machine.inspect(one) for one in machine.containers("label=meshbox.service=trio", "status=running")]
    return {(one["Id"], one["State"]["StartedAt"]) for one in found}
