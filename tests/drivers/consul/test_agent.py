"""What a Consul agent says of itself, and what is made of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from appliance.config import values
from appliance.config.options import Consul
from appliance.drivers.consul.agent import PERIOD, Agent, AgentFacts, parse_agent, parse_members, refused_ports
from appliance.drivers.consul.api import ConsulApi
from appliance.drivers.consul.transport import ConsulError
from appliance.model.names import Protocol
from tests.realconsul import ConsulAgent, free_ports

if TYPE_CHECKING:
    from pathlib import Path

TCP, UDP = Protocol.TCP, Protocol.UDP
DEFAULT = {(TCP, 8300), (TCP, 8301), (UDP, 8301), (TCP, 8302), (UDP, 8302), (TCP, 8502), (TCP, 8503)}
"""What Consul's own documentation says, without HTTP and DNS."""
DENYING = """
    encrypt = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvIwy7Cu5s="
    acl { enabled = true, default_policy = "deny", tokens { master = "secret", agent = "secret" } }
"""


def asked(agent: ConsulAgent, token: str = "") -> AgentFacts:
    """Return what a real agent says."""

    async def main() -> AgentFacts:
        api = ConsulApi(Consul(address=agent.address, token=token))
        try:
            return parse_agent(await api.agent())
        finally:
            await api.aclose()

    return trio.run(main)


@pytest.mark.parametrize(("hcl", "token", "good"), [("", "", False), (DENYING, "secret", True)], ids=["open", "closed"])
def test_a_real_agent(tmp_path: Path, hcl: str, token: str, good: bool) -> None:
    """Its own numbers of ports count, what it does not open is absent, and it says whether strangers get in."""
    first = free_ports(3)
    agent = ConsulAgent(tmp_path, base_port=first, hcl=hcl, token=token)
    try:
        found = asked(agent.start(), token)
    finally:
        agent.stop()
    everything = refused_ports(values.consul_ports("gossip, rpc, grpc, http, dns"), found)
    assert everything == {(TCP, first), (TCP, first + 1), (TCP, first + 2), (UDP, first + 2)}
    assert refused_ports(values.consul_ports("gossip, rpc, grpc"), found) == everything - {(TCP, first)}
    assert found.address == IPv4Address("127.0.0.1")
    assert (found.denies, found.encrypted) == (good, good)
    assert len(found.complaints) == (0 if good else 2)


@pytest.mark.parametrize(
    ("debug", "denies"),
    [
        ({}, None),
        ({"ACLsEnabled": False, "ACLDefaultPolicy": "deny"}, False),
        ({"ACLsEnabled": True, "ACLResolverSettings": {"ACLDefaultPolicy": "deny"}}, True),
        ({"ACLsEnabled": True, "ACLResolverSettings": {"ACLDefaultPolicy": "allow"}}, False),
    ],
)
def test_access_rules_of_other_versions(debug: dict[str, object], denies: bool | None) -> None:
    """Consul 1.10 moved the policy. Where it says nothing, nothing is claimed."""
    assert parse_agent({"DebugConfig": debug}).denies is denies


@pytest.mark.parametrize("answer", [{}, {"DebugConfig": 7}, {"DebugConfig": {"ServerPort": "8300", "DNSPort": True}}])
def test_what_cannot_be_read(answer: dict[str, object]) -> None:
    """Then Consul's defaults count, or nothing more is refused; nothing is raised."""
    found = parse_agent({**answer, "Member": {"Addr": "::1"}, "Stats": []})
    assert found.address is None
    assert found.complaints == ()
    assert refused_ports(values.consul_ports("rpc"), found) <= {(TCP, 8300)}


def test_defaults() -> None:
    """Before the agent has answered, or where it may not be asked, the ports are those of Consul's documentation."""
    refused = refused_ports(Consul().refuse, AgentFacts())
    assert refused == DEFAULT
    own = refused_ports(values.consul_ports(["http", "dns", "9301/udp", "9300"]), AgentFacts())
    assert own == {(TCP, 8500), (TCP, 8501), (TCP, 8600), (UDP, 8600), (UDP, 9301), (TCP, 9300), (UDP, 9300)}


def test_members() -> None:
    """Addresses that cannot be read hide no others."""
    listed = [{"Addr": "10.0.0.1"}, {"Addr": 7}, None, {"Addr": "fe80::1"}, {"Addr": "10.0.0.2"}]
    assert parse_members(listed) == {IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")}
    assert parse_members({}) == frozenset()


class Api:
    """An agent that refuses at first, and then says where it listens."""

    def __init__(self) -> None:
        self.answer: dict[str, object] | None = None
        self.listed: list[object] = []

    async def agent(self) -> dict[str, object]:
        if self.answer is None:
            raise ConsulError("Permission denied", "give the token more", refused=True)
        return self.answer

    async def members(self) -> list[object]:
        return self.listed


def test_followed(capsys: pytest.CaptureFixture[str]) -> None:
    """Defaults first, then what the agent says, and what it says later; each complaint is logged once."""
    api, rings = Api(), []
    open_ = {"ACLsEnabled": False, "ACLDefaultPolicy": "allow", "ServerPort": 9300}
    settings = replace(Consul(), agents=values.addresses("172.18.0.9"), address="http://172.18.0.5:8500")

    async def main() -> None:
        agent = Agent(api, settings, changed=lambda: rings.append(agent.ports))  # type: ignore[arg-type]
        assert agent.ports.ports == DEFAULT
        assert agent.ports.advertised == {IPv4Address("172.18.0.5")}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            await agent.asked.wait()
            assert rings == []
            api.answer = {"DebugConfig": open_, "Member": {"Addr": "10.0.0.1"}}
            api.listed = [{"Addr": "10.0.0.1"}, {"Addr": "10.0.0.2"}]
            await trio.sleep(3 * PERIOD)
            nursery.cancel_scope.cancel()
        assert agent.ports == rings[-1]
        assert agent.ports.ports == {(TCP, 9300)}
        assert agent.ports.hosts == {IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")}
        assert agent.ports.advertised == {IPv4Address("172.18.0.5"), IPv4Address("10.0.0.1")}
        assert agent.ports.exempt == {IPv4Address("172.18.0.9")}
        assert len(rings) == 2

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert capsys.readouterr().out.count("do not deny by default") == 1
