"""Callers go round the ports that are theirs, and on to a further address where those are in use."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from appliance.dataplane import sources
from appliance.dataplane.sources import FIRST_PORT, FURTHER, PORTS, TRIES, Source, Sources
from appliance.model.sources import SHARES, CallerSources

CALLER, OTHER = IPv4Address("172.18.0.3"), IPv4Address("172.18.0.4")
FIRST = IPv4Address("240.0.0.3")
WANTED = CallerSources(step=256, addresses={CALLER: FIRST})
NOBODY = Source(["240.0.0.0"])


def test_ports_lie_above_those_that_the_kernel_gives_to_programs() -> None:
    """By default; the first is the one after those."""
    last = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[1])
    assert last < FIRST_PORT or last != 60999
    assert FIRST_PORT + PORTS - 1 == 65535


def test_each_port_comes_again_as_late_as_can_be() -> None:
    """All others are used before, whatever the first was."""
    source = Source(["240.0.0.3"])
    taken = [source.take() for _ in range(2 * PORTS)]
    assert len(set(taken)) == PORTS
    assert taken[:PORTS] == taken[PORTS:]
    assert {port for _, port in taken} == set(range(FIRST_PORT, FIRST_PORT + PORTS))


def test_callers_begin_anywhere() -> None:
    """Several processes that dial for one caller seldom meet."""
    assert len({Source(["240.0.0.3"]).take() for _ in range(20)}) > 1


def test_a_port_in_use_is_passed_over_at_random() -> None:
    """The ports behind it are probably in use as well."""
    source = Source(["240.0.0.3", "240.0.1.3"])
    found = set()
    for _ in range(50):
        found.add(source.take())
        source.clash()
        source.take()
        source.free()
    assert len(found) > 25
    assert {address for address, _ in found} == {"240.0.0.3"}


def test_want_of_ports_leads_to_a_further_address_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """After TRIES in a row; and from the last one to the first again."""
    now = 1000.0
    monkeypatch.setattr(sources.time, "monotonic", lambda: now)
    source = Source(["240.0.0.3", "240.0.1.3", "240.0.2.3"])
    seen = []
    for _ in range(4):
        seen.append(source.take()[0])
        for _ in range(TRIES):
            source.clash()
    assert seen == ["240.0.0.3", "240.0.1.3", "240.0.2.3", "240.0.0.3"]
    source.free()
    assert source.take()[0] == "240.0.1.3"
    now += FURTHER
    assert source.take()[0] == "240.0.0.3"


def test_each_caller_has_its_own() -> None:
    """One that has none is seen as nobody."""
    known = Sources()
    assert known.of("172.18.0.3", NOBODY) is NOBODY
    known.set(WANTED)
    assert known.of("172.18.0.3", NOBODY).take()[0] == "240.0.0.3"
    assert known.of("172.18.0.4", NOBODY) is NOBODY
    assert known.of("172.18.0.3", NOBODY).count == SHARES


def test_what_stays_goes_on_where_it_is() -> None:
    """A caller whose addresses change keeps its ports, and one that goes is forgotten."""
    known = Sources()
    known.set(WANTED)
    source = known.of("172.18.0.3", NOBODY)
    known.set(CallerSources(step=256, addresses={OTHER: FIRST}))
    assert known.of("172.18.0.4", NOBODY) is source
    assert known.of("172.18.0.3", NOBODY) is NOBODY
    known.set(CallerSources(addresses={OTHER: FIRST}))
    assert known.of("172.18.0.4", NOBODY).count == 1
