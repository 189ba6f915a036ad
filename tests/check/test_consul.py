"""What `meshbox check` says of Consul: where it is, what is wrong there, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from appliance.check import consul
from appliance.config.options import Config, Consul
from appliance.model.finding import Level
from tests.faultyconsul import FaultyConsul
from tests.realconsul import ConsulAgent, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> Iterator[ConsulAgent]:
    """A Consul server."""
    agent = ConsulAgent(tmp_path_factory.mktemp("consul"), base_port=free_ports(3))
    try:
        yield agent.start()
    finally:
        agent.stop()


def look(node="", **settings):
    """Return the first finding."""
    return trio.run(consul.consul, Config(registry="consul", node=node, consul=Consul(**settings)))[0]


def test_without_consul() -> None:
    """A machine alone asks nobody."""
    assert trio.run(consul.consul, Config()) == []


def test_well(agent) -> None:
    """It answers, and the finding says from where."""
    found = look(address=agent.address)
    assert found.level is Level.OK
    assert agent.address in found.words


def test_strangers_get_in(agent) -> None:
    """A Consul as it is by default answers, and lets in whoever reaches it: both are said, with what to do."""
    good, *others = trio.run(consul.consul, Config(registry="consul", consul=Consul(address=agent.address)))
    assert good.level is Level.OK
    assert {one.level for one in others} == {Level.WARNING}
    acls, gossip = others
    assert "ACLs do not deny by default" in acls.words
    assert 'default_policy = "deny"' in acls.remedy
    assert "gossip has no key" in gossip.words
    assert "encrypt" in gossip.remedy


def test_unreachable() -> None:
    """The appliance would run all the same, so that it is a warning; address and remedy are named."""
    address = f"http://127.0.0.1:{free_ports(1)}"
    found = look(address=address)
    assert found.level is Level.WARNING
    assert f"Consul at {address} cannot be reached" in found.words
    assert found.remedy == "check that its agent runs, or set consul.address"


@pytest.mark.parametrize(
    ("fault", "words", "remedy"),
    [
        ({"status": 500}, "No cluster leader", "the other Consul servers"),
        ({"no_leader": True}, "no leader", "check the other Consul servers"),
        (
            {"status": 403},
            "refuses reading the agent",
            'the token\'s policy needs agent_prefix "" { policy = "read" }',
        ),
        ({"delay": 3600.0}, "did not answer within", "check its load"),
    ],
    ids=["failing", "no leader", "token", "silent"],
)
def test_trouble(agent, monkeypatch, fault, words, remedy) -> None:
    """Each trouble has its words and its remedy."""
    monkeypatch.setattr(consul, "PATIENCE", 1.0 if "delay" in fault else 30.0)

    async def main():
        faulty = FaultyConsul(agent.address, **fault)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            (found,) = await consul.consul(Config(registry="consul", consul=Consul(address=faulty.address)))
            nursery.cancel_scope.cancel()
        assert found.level is Level.WARNING
        assert words in found.words
        assert remedy in found.remedy

    trio.run(main)


def test_namesakes(agent) -> None:
    """Another host's appliance of this name, at this agent or at another, is named with what to do."""
    check = {"CheckID": "meshbox:m1", "Name": "x", "TTL": "600s", "Status": "passing"}
    entry = {"Name": "meshbox", "ID": "meshbox:m1", "Address": "10.0.0.1", "Check": check}
    agent.request("PUT", "/v1/agent/service/register", {**entry, "Meta": {"node": "m1", "host": "another"}})
    try:
        found = look(node="m1", address=agent.address)
        assert found.level is Level.FAILED
        assert found.words.startswith('another appliance calls itself "m1" at this Consul agent')
        assert found.remedy.startswith('give one of them another "node"')
        double = {"ID": "meshbox:m1", "Service": "meshbox", "Address": "10.0.0.2", "Meta": {"node": "m1"}}
        agent.request("PUT", "/v1/catalog/register", {"Node": "far", "Address": "10.0.0.2", "Service": double})
        found = look(node="m3", address=agent.address)
        assert found.level is Level.WARNING
        assert found.words.startswith('two machines call themselves "m1": 10.0.0.1 ')
        assert found.remedy == 'give one of them another "node" in its configuration'
    finally:
        agent.request("PUT", "/v1/agent/service/deregister/meshbox:m1")
        agent.request("PUT", "/v1/catalog/deregister", {"Node": "far"})


@pytest.mark.parametrize("key", ["token_file", "ca", "cert"])
def test_files(tmp_path, key) -> None:
    """A file of the settings that cannot be used keeps the appliance from running."""
    found = look(address="https://127.0.0.1:1", **{key: str(tmp_path / "none")})
    assert found.level is Level.FAILED
    assert f"consul.{key} {tmp_path}/none" in found.words
    assert "No such file" in found.words
    assert found.remedy == "mend that file, or name another one"
