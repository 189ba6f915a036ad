"""The calls to Consul, with a real agent: what each returns, and which rule its token needs."""

from __future__ import annotations

import pytest
import trio

from appliance.config.options import Consul as ConsulSettings
from appliance.drivers.consul.api import ConsulApi
from appliance.drivers.consul.codec import destination_id, machine_id
from appliance.drivers.consul.transport import ConsulError
from appliance.model.names import Destination
from tests.faultyconsul import FaultyConsul
from tests.realconsul import wait_until

M1, WEB = machine_id("m1"), destination_id("m1", Destination.parse("web.web:80"))


def run(agent, script, **settings):
    """Run a script with an API."""

    async def main():
        api = ConsulApi(ConsulSettings(address=agent.address, **settings))
        try:
            await script(api)
        finally:
            await api.aclose()

    trio.run(main)


def service(service_id, name="meshbox"):
    """The arguments of a registration with a heartbeat of its own."""
    check = {"CheckID": service_id, "Name": "x", "TTL": "600s", "Status": "critical"}
    return {"name": name, "service_id": service_id, "address": "10.0.0.1", "meta": {}, "check": check}


def test_registrations(consul_agent):
    """What this node has registered is told, nobody else's; it is healthy with its heartbeat, and gone when it is."""

    async def script(api):
        for arguments in (service(M1), service(WEB, "web"), service(machine_id("m10")), service("x", "x")):
            await api.register(arguments)
        assert set(await api.own_services("m1")) == {M1, WEB}
        assert not await api.is_passing(M1)
        await api.heartbeat(M1)
        assert await api.is_passing(M1)
        assert not await api.is_passing("none")
        await api.deregister(WEB)
        assert set(await api.own_services("m1")) == {M1}
        await api.deregister(machine_id("m1"))
        with pytest.raises(ConsulError):
            await api.heartbeat(M1)

    run(consul_agent, script)


def test_services(consul_agent):
    """The catalogue has all names, with an index that a query waits behind until it has moved."""

    async def script(api):
        await api.register(service(WEB, "web"))
        with trio.fail_after(10):
            index, names = await api.services()
            while "web" not in names:
                index, names = await api.services(index)
            assert await api.catalogue() == index
            found, entries = await api.health("web")
            assert [entry["Service"]["ID"] for entry in entries] == [WEB]
            assert (await api.health("none"))[1] == []
            await api.register({**service(WEB, "web"), "address": "10.0.0.2"})
            later, entries = await api.health("web", found)
            assert later > found
            assert entries[0]["Service"]["Address"] == "10.0.0.2"

    run(consul_agent, script)


def test_keys(consul_agent):
    """Keys are below the prefix of the settings; each write and deletion is bound to what was there."""

    async def script(api):
        assert api.key("specs/web") == "team/mesh/specs/web"
        assert await api.value("specs/web") is None
        assert (await api.values("specs/"))[1] == {}
        assert await api.put("specs/web", b"one", cas=0)
        assert not await api.put("specs/web", b"two", cas=0)
        value, index = await api.value("specs/web")
        assert value == b"one"
        assert await api.put("specs/web", b"", cas=index)
        assert not await api.delete("specs/web", cas=index)
        (_, found) = await api.values("specs/")
        assert found.keys() == {"team/mesh/specs/web"}
        ((value, index),) = found.values()
        assert value == b""
        assert await api.delete("specs/web", cas=index)
        assert await api.value("specs/web") is None

    run(consul_agent, script, prefix="team/mesh")


def test_agents(consul_agent):
    """Our agent is known by its address, and knows of none that has failed."""

    async def script(api):
        assert await api.address() == "127.0.0.1"
        assert await api.failed_agents() == []
        await api.join(f"127.0.0.1:{consul_agent.base_port + 2}")

    wait_until(lambda: consul_agent.get("/v1/agent/self"), "the agent answers")
    run(consul_agent, script)


CALLS = {
    'agent_prefix "" { policy = "read" }': lambda api: api.address(),
    'node_prefix "" { policy = "read" }': lambda api: api.failed_agents(),
    'agent_prefix "" { policy = "write" }': lambda api: api.join("10.0.0.1:8301"),
    'service "web" { policy = "read" } and node_prefix "" { policy = "read" }': lambda api: api.health("web"),
    'service_prefix "" { policy = "read" }': lambda api: api.own_services("m1"),
    'service "web" { policy = "write" }': lambda api: api.register(service(WEB, "web")),
    'service_prefix "" { policy = "write" }': lambda api: api.deregister(WEB),
    'service "meshbox" { policy = "write" }': lambda api: api.heartbeat(M1),
    'key_prefix "meshbox/" { policy = "read" }': lambda api: api.values("specs/"),
    'key_prefix "meshbox/" { policy = "write" }': lambda api: api.put("specs/web", b"", cas=0),
}


@pytest.mark.parametrize(("rule", "call"), CALLS.items(), ids=CALLS)
def test_refusal_names_the_rule(consul_agent, rule, call):
    """Whatever Consul refuses, the remedy is the rule that the token's policy needs."""

    async def main():
        faulty = FaultyConsul(consul_agent.address, status=403)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            api = ConsulApi(ConsulSettings(address=faulty.address))
            with pytest.raises(ConsulError) as caught:
                await call(api)
            await api.aclose()
            nursery.cancel_scope.cancel()
        assert caught.value.refused
        assert caught.value.remedy == f"the token's policy needs {rule}"

    trio.run(main)
