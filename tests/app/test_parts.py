"""Parts that are made know each other, and nothing has been touched."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from appliance.dataplane.inprocess import InProcess
from appliance.drivers.netns import identity
from appliance.drivers.nft.features import NftFeatures
from appliance.model.facts import Probe
from appliance.model.names import Protocol
from appliance.model.network import HostRuleset, NetnsId
from appliance.model.registry import Interests
from appliance.model.state import HostState
from tests.plan.cases import container

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from appliance.app.parts import Parts


def test_making_parts_touches_nothing(parts: Parts, tmp_path: Path) -> None:
    """A command line that only wants to know what would run leaves no trace."""
    assert list(tmp_path.iterdir()) == []
    assert parts.facts.snapshot().settings.doors


def test_first_pass_finds_what_was_asked_for_before_it(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart, containers that ran all the time are backends as soon as their listeners open."""
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(parts.registry, "watch", lambda wanted: told.append(("watch", wanted)))
    monkeypatch.setattr(parts.inventory, "probe", lambda wanted: told.append(("probe", wanted)))
    server = replace(container(2, "web.shop", ports=(80,)), bound=frozenset(), started_at=1.0)
    parts.inventory.workloads = (server,)
    parts.look_ahead()
    assert server.netns is not None
    looked_up = Probe(
        server.id, server.netns.id, server.netns.path, 1.0, server.addresses, ((Protocol.TCP, 80),), own_rules=False
    )
    assert told == [
        ("watch", Interests(services=frozenset({"shop"}))),
        ("probe", frozenset({looked_up})),
    ]


def test_containers_that_fail_are_looked_at(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data plane's word reaches what looks up ports, from a process of its own as well."""
    told: list[IPv4Address] = []
    monkeypatch.setattr(parts.inventory, "refused", told.append)
    assert isinstance(parts.plane, InProcess)
    refused = parts.plane._context.refused
    assert refused is not None
    refused(IPv4Address("172.18.0.2"))
    assert told == [IPv4Address("172.18.0.2")]


def test_what_the_kernel_does_not_know_is_not_wanted(parts: Parts) -> None:
    """An old kernel does without; one that takes them changes nothing."""
    every = NftFeatures(version=(1, 0, 6), doors=True, bridges=True)
    parts.limit_to(every)
    assert parts.facts.snapshot().settings.doors
    assert parts.facts.snapshot().settings.port_claims
    parts.limit_to(replace(every, doors=False))
    assert not parts.facts.snapshot().settings.doors
    assert parts.facts.snapshot().settings.port_claims
    parts.limit_to(replace(every, bridges=False))
    assert not parts.facts.snapshot().settings.port_claims


def test_drift_of_the_hosts_table_forgets_that_table(parts: Parts) -> None:
    """What somebody changed is pushed anew; which table it was is in the log."""
    rules = HostRuleset(proxy_ports=(20000, 29999), dns_port=53, dns_addresses=frozenset({IPv4Address("172.17.0.1")}))
    parts.reconciler.have = replace(HostState(), host_ruleset=rules)
    here = identity.identify(identity.HOST)
    assert here is not None
    with capture_logs() as lines:
        parts._drifted(NetnsId(device=1, inode=2))
        assert parts.reconciler.have.host_ruleset == rules
        parts._drifted(here)
    assert parts.reconciler.have.host_ruleset is None
    assert [("container" in line["event"], line.get("netns")) for line in lines] == [(True, "1:2"), (False, None)]
