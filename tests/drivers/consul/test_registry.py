"""Consul as the registry, with a real Consul and its default limits, sound and in trouble."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address

import orjson
import pytest
import trio
from dnslib import DNSRecord
from foreign import EVIL, HUGE, LARGE, check_shown

from appliance.config.options import Consul as ConsulSettings
from appliance.drivers.consul import liveness
from appliance.drivers.consul.announce import SETTLE, Announcer
from appliance.drivers.consul.api import ConsulApi
from appliance.drivers.consul.presence import NoAnswerError, ask
from appliance.drivers.consul.registry import ConsulRegistry
from appliance.drivers.local.store import LocalStore
from appliance.errors import HostError, RetryError
from appliance.model.facts import Allocations
from appliance.model.names import Destination, Name
from appliance.model.network import Registration
from appliance.model.registry import Interests
from appliance.model.spec import Container, Service
from tests.faultyconsul import FaultyConsul
from tests.realconsul import ACL_RULES, ConsulAgent, consul_binary, free_ports, wait_until
from tests.together import run_again, run_registry

WEB = Destination.parse("web.web:80")
SPEC = Service(name="web", containers=(Container(name="web", image="x"),))
SPEC_GONE = replace(SPEC, name="gone")
ALL = frozenset({"web"})
QUIET = 0.5
"""Seconds in which something that must not happen would have happened: Consul answers within milliseconds."""


def serving(weight=1, destination=WEB, port=20000) -> Registration:
    """That a machine serves something."""
    return Registration(destination=destination, proxy_port=port, weight=weight)


async def until(condition, seconds=20.0):
    """Wait until the condition holds."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


class Machines:
    """Registries of simulated machines, each with a state folder of its own, over one or several Consuls."""

    def __init__(self, folder, address, **settings):
        self.folder = folder
        self.settings = ConsulSettings(address=address, **settings)
        self.rings = Counter()

    def made(self, node, *, address=None, at="", **fields):
        """One registry. `at` is its address, or "agent" to take that of the Consul agent."""
        number = int(node[1:])
        return ConsulRegistry(
            replace(self.settings, address=address or self.settings.address),
            node=node,
            address=None if at == "agent" else IPv4Address(at or f"10.0.0.{number}"),
            proxy_ports=(20000, 29999),
            state_dir=self.folder / node,
            bell=lambda: self.rings.update([node]),
            **fields,
        )

    @asynccontextmanager
    async def machine(self, node, *, watch=ALL, **fields):
        """One running registry, made with these fields."""
        registry = self.made(node, **fields)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_registry, registry)
            registry.watch(Interests(services=watch))
            yield registry
            nursery.cancel_scope.cancel()


@pytest.fixture
def machines(tmp_path, consul_agent) -> Machines:
    """Machines over one sound Consul."""
    return Machines(tmp_path, consul_agent.address)


def nodes(registry):
    """The machines that a registry takes for healthy."""
    return [m.node for m in registry.facts.machines if m.healthy]


def weights(registry):
    """What other machines serve, as node and weight."""
    return sorted((e.node, e.weight) for e in registry.facts.endpoints)


def test_two_machines_find_each_other(machines, consul_agent):
    """Machines, what they serve and with which weight are known to the others; withdrawing is too."""

    async def main():
        async with machines.machine("m1", meta=(("disk", "ssd"),)) as one, machines.machine("m2") as two:
            await until(lambda: nodes(one) == nodes(two) == ["m1", "m2"])
            assert two.facts.machines[0].meta == (("disk", "ssd"),)
            assert two.facts.machines[0].address == IPv4Address("10.0.0.1")
            await one.register(serving(2))
            await until(lambda: weights(two) == [("m1", 2)])
            await one.register(serving(3))
            await until(lambda: weights(two) == [("m1", 3)])
            (endpoint,) = two.facts.endpoints
            assert (endpoint.destination, str(endpoint.address), endpoint.port) == (WEB, "10.0.0.1", 20000)
            (seen,) = consul_agent.get("/v1/health/service/web?passing&tag=web")
            assert seen["Service"]["Weights"]["Passing"] == 3
            await one.deregister(serving())
            await until(lambda: weights(two) == [])
            assert two.facts.held_since is None
            assert two.facts.problems == ()

    trio.run(main)


def test_specs_and_tombstones_are_shared(machines, consul_agent):
    """What is deployed on one machine is known on all, and removed on one, removed on all; and all is in our folder."""
    machines.settings = replace(machines.settings, prefix="team/mesh")

    async def main():
        async with machines.machine("m1") as one, machines.machine("m2") as two:
            await one.put_spec(SPEC)
            await until(lambda: two.facts.specs == {"web": SPEC})
            await two.put_spec(replace(SPEC, count=3))
            await until(lambda: one.facts.specs["web"].count == 3)
            assert await one.remove_spec("web")
            await until(lambda: not two.facts.specs and "web" in two.facts.tombstones)
            assert not await two.remove_spec("web")
            assert not await two.remove_spec("never")
            await two.put_spec(SPEC)
            await until(lambda: one.facts.specs and not one.facts.tombstones)
            assert set(consul_agent.get("/v1/kv/?keys")) == {"team/mesh/epoch", "team/mesh/specs/web"}

    trio.run(main)


def test_consuls_own_dns_knows_the_mesh(tmp_path):
    """`dig flask.flask.service.consul` answers with the addresses of the machines that serve it."""
    port = free_ports(4)
    agent = ConsulAgent(tmp_path / "consul", base_port=port, dns_port=port + 3)
    machines = Machines(tmp_path, agent.address)

    def asked() -> list[str]:
        question = DNSRecord.question("flask.flask.service.consul")
        reply = DNSRecord.parse(question.send("127.0.0.1", port + 3, timeout=5))
        return sorted(str(record.rdata) for record in reply.rr)

    async def main():
        flask = serving(destination=Destination.parse("flask.flask:8080"))
        async with machines.machine("m1") as one, machines.machine("m2") as two:
            await one.register(flask)
            await until(lambda: asked() == ["10.0.0.1"])
            await two.register(flask)
            await until(lambda: asked() == ["10.0.0.1", "10.0.0.2"])
            await one.deregister(flask)
            await until(lambda: asked() == ["10.0.0.2"])

    try:
        agent.start()
        trio.run(main)
    finally:
        agent.stop()


def test_removing_without_consul(machines, consul_agent):
    """A removal takes effect here at once, and everywhere when Consul is back."""

    async def main():
        async with machines.machine("m1") as one, machines.machine("m2") as two:
            await one.put_spec(SPEC)
            await until(lambda: two.facts.specs)
            await trio.to_thread.run_sync(consul_agent.stop)
            assert await one.remove_spec("web")
            assert one.facts.specs == {}
            assert set(one.facts.tombstones) == {"web"}
            assert two.facts.specs == {"web": SPEC}
            await trio.to_thread.run_sync(consul_agent.start)
            await until(lambda: two.facts.specs == {} and set(two.facts.tombstones) == {"web"})
            await until(lambda: one.facts.problems == ())

    trio.run(main)


def test_leftovers_of_a_crash(machines, consul_agent):
    """What a former run under this node left behind goes, what is wanted stays, and nothing else is touched."""
    for name, service_id in (("old", "meshbox:m1:old.old:1/tcp"), ("web", "meshbox:m10:web.web:80/tcp"), ("x", "x")):
        consul_agent.request("PUT", "/v1/agent/service/register", {"Name": name, "ID": service_id})

    async def main():
        async with machines.machine("m1") as one:
            await one.register(serving())
            await until(lambda: "meshbox:m1:old.old:1/tcp" not in consul_agent.get("/v1/agent/services"))

    trio.run(main)
    assert set(consul_agent.get("/v1/agent/services")) == {
        "meshbox:m1",
        "meshbox:m1:web.web:80/tcp",
        "meshbox:m10:web.web:80/tcp",
        "x",
    }


def test_withdrawing_before_the_end(machines, consul_agent):
    """Before it ends, a machine withdraws what it serves; the machine itself stays until its heartbeat is missed."""

    async def main():
        async with machines.machine("m1") as one:
            await one.register(serving())
            await one.withdraw()
            assert set(consul_agent.get("/v1/agent/services")) == {"meshbox:m1"}

    trio.run(main)
    assert set(consul_agent.get("/v1/agent/services")) == {"meshbox:m1"}


def test_a_machine_that_dies(machines, consul_agent):
    """Of a machine that is not heard of, or registered no more, nothing is used; it may call while its address is its.

    A restart remembers it.
    """

    async def main():
        async with machines.machine("m1") as one, machines.machine("m2") as two:
            await two.register(serving())
            await until(lambda: weights(one) == [("m2", 1)])
            two._announcer._beat = trio.lowlevel.checkpoint
            consul_agent.request("PUT", "/v1/agent/check/fail/meshbox:m2")
            await until(lambda: nodes(one) == ["m1"] and weights(one) == [])
            assert await one.look(Interests(services=ALL)) == ()
            assert [m.node for m in one.facts.machines] == ["m1", "m2"]
            consul_agent.request("PUT", "/v1/agent/check/pass/meshbox:m2")
            await until(lambda: weights(one) == [("m2", 1)])
            two._announcer._compare = trio.lowlevel.checkpoint
            consul_agent.request("PUT", "/v1/agent/service/deregister/meshbox:m2")
            await until(lambda: nodes(one) == ["m1"] and weights(one) == [])
            assert [m.node for m in one.facts.machines] == ["m1", "m2"]
        async with machines.machine("m1") as one:
            await until(lambda: one.facts.held_since is None and one.facts.open_queries == 3)
            assert [m.node for m in one.facts.machines if not m.healthy] == ["m2"]
            async with machines.machine("m3", at="10.0.0.2"):
                await until(lambda: [m.node for m in one.facts.machines] == ["m1", "m3"])

    trio.run(main)


def test_a_machine_that_is_not_heard_of_is_asked_itself(machines, consul_agent, monkeypatch):
    """It may call while it says that it is alive, registered or not; once it is dead it may not, also after a restart.

    While Consul is away nobody loses anything.
    """
    monkeypatch.setattr(liveness, "PERIOD", 0.05)

    def standing(registry):
        """What is known of the second machine."""
        return next((m.healthy, m.answers) for m in registry.facts.machines if m.node == "m2")

    def asked(registry):
        """Count the questions, since an answer changes nothing."""
        knows, count = registry._machines._liveness._presence._knows, []
        registry._machines._liveness._presence._knows = lambda address: count.append(address) or knows(address)
        return count

    async def main():
        at = {"at": "127.0.0.5"}
        async with machines.machine("m1", **at) as one:
            async with machines.machine("m2", at="127.0.0.2") as two:
                (port,) = two.facts.own_ports
                questions = asked(two)
                await until(lambda: nodes(one) == nodes(two) == ["m1", "m2"])
                assert {m.node: m.presence_port for m in one.facts.machines}["m2"] == port
                two._announcer._beat = two._announcer._compare = trio.lowlevel.checkpoint
                assert questions == []
                consul_agent.request("PUT", "/v1/agent/check/fail/meshbox:m2")
                await until(lambda: len(questions) > 5)
                assert set(questions) == {IPv4Address("127.0.0.5")}
                assert standing(one) == (False, True)
                consul_agent.request("PUT", "/v1/agent/service/deregister/meshbox:m2")
                await until(lambda: not consul_agent.get("/v1/health/service/meshbox")[1:])
                questions.clear()
                await until(lambda: len(questions) > 5)
                assert standing(one) == (False, True)
                await trio.to_thread.run_sync(consul_agent.stop)
                await until(lambda: one.facts.held_since is not None)
            await trio.sleep(QUIET)
            assert standing(one) == (False, True)
            await trio.to_thread.run_sync(consul_agent.start)
            await until(lambda: standing(one) == (False, False))
        async with machines.machine("m1", **at) as one:
            assert standing(one) == (False, False)
        async with machines.machine("m2", at="127.0.0.2") as two:
            assert two.facts.own_ports == {port}, "who cannot hear of another one asks there"
            async with machines.machine("m1", **at) as one:
                await until(lambda: nodes(one) == ["m1", "m2"])
                assert standing(one) == (True, True)

    trio.run(main)


def test_the_agent_loses_its_registrations(machines, consul_agent):
    """What somebody removes from the agent is put back at the next heartbeat that fails."""

    async def main():
        async with machines.machine("m1") as one, machines.machine("m2") as two:
            await one.register(serving())
            await until(lambda: weights(two) == [("m1", 1)])
            for service_id in ("meshbox:m1", "meshbox:m1:web.web:80/tcp"):
                consul_agent.request("PUT", f"/v1/agent/service/deregister/{service_id}")
            await until(lambda: "m1" not in nodes(two))
            await until(lambda: weights(two) == [("m1", 1)])

    trio.run(main)


TROUBLES = {
    "answers 500": {"status": 500},
    "has no leader": {"no_leader": True},
    "closes connections": {"refuse": True},
    "answers empty": {"empty": lambda path: True},
    "answers services empty": {"empty": lambda path: path.startswith("/v1/health/")},
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
def test_trouble_changes_nothing(machines, trouble):
    """Whatever Consul does wrong, what was known stays, marked as held; afterwards it is fresh, without a flap."""

    async def main():
        faulty = FaultyConsul(machines.settings.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            async with machines.machine("m2") as two, machines.machine("m1", address=faulty.address) as one:
                await two.register(serving())
                await one.put_spec(SPEC)
                await until(lambda: weights(one) == [("m2", 1)] and nodes(one) == ["m1", "m2"])
                known = one.facts
                machines.rings.clear()
                for name, value in trouble.items():
                    setattr(faulty, name, value)
                faulty.hang_up()
                await until(lambda: one.facts.held_since is not None)
                await trio.sleep(QUIET)
                assert one.facts.specs == known.specs
                assert one.facts.machines == known.machines
                assert one.facts.endpoints == known.endpoints
                assert one.facts.held_why
                assert machines.rings["m1"] == 0
                for name in trouble:
                    setattr(faulty, name, getattr(FaultyConsul(""), name))
                await until(lambda: one.facts.held_since is None)
                await two.register(serving(5))
                await until(lambda: weights(one) == [("m2", 5)])
                assert machines.rings["m1"] == 1
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_slow_consul(machines):
    """A Consul that takes a second for everything is used anyway."""

    async def main():
        faulty = FaultyConsul(machines.settings.address, delay=1.0)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            async with machines.machine("m2") as two, machines.machine("m1", address=faulty.address) as one:
                await two.register(serving())
                await until(lambda: weights(one) == [("m2", 1)])
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_boot_without_consul(machines, consul_agent):
    """A start without Consul goes on with what was last known, specs, machines and endpoints, and heals later."""

    async def main():
        async with machines.machine("m2") as two:
            async with machines.machine("m1") as one:
                await two.register(serving(4))
                await one.put_spec(SPEC)
                await one.keep_allocations(Allocations(vips={Name.parse("a.b"): IPv4Address("240.0.0.9")}))
                await until(lambda: weights(one) == [("m2", 4)] and nodes(one) == ["m1", "m2"])
                known = one.facts
            await trio.to_thread.run_sync(consul_agent.stop)
            async with machines.machine("m1") as one:
                assert one.facts.specs == known.specs
                assert one.facts.machines == known.machines
                assert one.facts.endpoints == known.endpoints
                assert one.facts.allocations == known.allocations
                assert one.facts.held_since is not None
                assert f"{consul_agent.address} cannot be reached" in one.facts.held_why
                await one.register(serving())  # local changes do not wait for it
                await one.put_spec(replace(SPEC, count=7))
                assert one.facts.specs["web"].count == 7
                assert one.facts.problems == ('the last change of service "web" waits for Consul',)
                await trio.to_thread.run_sync(consul_agent.start)
                await until(lambda: one.facts.held_since is None and one.facts.problems == ())
                await until(lambda: two.facts.specs["web"].count == 7)
                await until(lambda: weights(two) == [("m1", 1)])

    trio.run(main)


def test_consul_restarted_with_empty_data(machines, consul_agent):
    """Nothing vanishes anywhere; catalogue and specs are put back, and what was removed before stays removed."""

    async def main():
        async with machines.machine("m1", grace=3) as one, machines.machine("m2", grace=3) as two:
            await one.put_spec(SPEC)
            await one.put_spec(replace(SPEC, name="gone"))
            await one.remove_spec("gone")
            await two.register(serving())
            await one.register(serving(destination=Destination.parse("x.web:1")))
            await until(lambda: weights(one) == [("m2", 1)] and weights(two) == [("m1", 1)])
            await until(lambda: two.facts.tombstones and two.facts.specs)
            machines.rings.clear()
            for _ in range(2):
                await trio.to_thread.run_sync(lambda: consul_agent.stop(wipe=True))
                await until(lambda: one.facts.held_since and two.facts.held_since)
                await trio.to_thread.run_sync(consul_agent.start)
                await until(lambda: one.facts.held_since is None and two.facts.held_since is None)
                await until(
                    lambda: (
                        set(consul_agent.get("/v1/kv/meshbox/?keys") or ())
                        == {"meshbox/epoch", "meshbox/specs/web", "meshbox/specs/gone"}
                        and len(consul_agent.get("/v1/health/service/web?passing") or ()) == 2
                        and len(consul_agent.get("/v1/health/service/meshbox?passing") or ()) == 2
                    )
                )
            await trio.sleep(4)  # past the grace
            assert machines.rings["m1"] == 0
            assert weights(one) == [("m2", 1)]
            assert weights(two) == [("m1", 1)]
            assert two.facts.specs == {"web": SPEC}
            assert set(two.facts.tombstones) == {"gone"}

    trio.run(main)


def test_backup_is_restored(machines, consul_agent, tmp_path):
    """What was deployed, removed and registered after the backup is put back, and nothing flaps meanwhile."""

    def snapshot(verb: str) -> None:
        command = (consul_binary(), "snapshot", verb, f"-http-addr={consul_agent.address}", tmp_path / "backup")
        subprocess.run(command, check=True, capture_output=True)

    async def main():
        async with machines.machine("m1", grace=3) as one, machines.machine("m2", grace=3) as two:
            await one.put_spec(SPEC_GONE)
            await one.put_spec(SPEC)
            await two.register(serving(destination=Destination.parse("x.web:1")))
            await until(lambda: set(two.facts.specs) == {"web", "gone"} and weights(one))
            await trio.to_thread.run_sync(snapshot, "save")
            await one.remove_spec("gone")
            await two.put_spec(replace(SPEC, count=5))
            await two.put_spec(replace(SPEC, name="new"))
            await two.register(serving(3))
            await until(lambda: set(one.facts.specs) == {"web", "new"} and weights(one) == [("m2", 1), ("m2", 3)])
            await until(lambda: one.facts.open_queries == two.facts.open_queries == 3)  # each waits for what comes
            known, here = one.facts, two.facts
            machines.rings.clear()
            async with trio.open_nursery() as nursery:  # it is noticed before the command has ended
                nursery.start_soon(trio.to_thread.run_sync, snapshot, "restore")
                await until(lambda: one.facts.held_since is not None)
                assert "older data than before" in one.facts.held_why
            await until(
                lambda: (
                    set(consul_agent.get("/v1/kv/meshbox/specs/?keys"))
                    == {f"meshbox/specs/{n}" for n in ("gone", "new", "web")}
                    and "removed" in consul_agent.request("GET", "/v1/kv/meshbox/specs/gone?raw").text
                    and len(consul_agent.get("/v1/health/service/web?passing")) == 2
                )
            )
            await until(lambda: one.facts.held_since is None and two.facts.held_since is None)
            await trio.sleep(QUIET)
            assert machines.rings == {}
            assert (one.facts.specs, one.facts.endpoints) == (known.specs, known.endpoints)
            assert (two.facts.specs, two.facts.tombstones) == (here.specs, here.tombstones)

    trio.run(main)


def test_consul_restarted_with_its_data(machines, consul_agent, monkeypatch):
    """Agents take machines for dead until their next heartbeat; for one TTL nobody believes that, for longer all do."""
    monkeypatch.setattr("appliance.drivers.consul.machines.AWAY", 1.0)
    monkeypatch.setattr("appliance.drivers.consul.loss.TTL", 4.0)

    def status(node: str) -> str:
        checks = consul_agent.get("/v1/health/checks/meshbox") or ()
        return "".join(check["Status"] for check in checks if check["CheckID"] == f"meshbox:{node}")

    async def main():
        async with machines.machine("m1") as one, machines.machine("m2") as two, machines.machine("m3") as three:
            await two.register(serving())
            await three.register(serving(2))
            await until(lambda: weights(one) == [("m2", 1), ("m3", 2)])
            machines.rings.clear()
            beat, may_beat = two._announcer._beat, trio.Event()

            async def late():
                await may_beat.wait()
                await beat()

            two._announcer._beat, three._announcer._beat = late, trio.sleep_forever
            two._announcer._compare = three._announcer._compare = trio.sleep_forever
            for path in (consul_agent.folder / "data/checks/state").iterdir():
                path.unlink()  # as if the TTL had passed since the last heartbeat
            await trio.to_thread.run_sync(consul_agent.stop)
            await until(lambda: one._staleness.lasted("machines") > 1)
            await trio.to_thread.run_sync(consul_agent.start)
            await until(lambda: status("m2") == status("m3") == "critical" and one.facts.held_since is None)
            may_beat.set()
            await trio.sleep(QUIET)
            assert machines.rings["m1"] == 0
            await until(lambda: nodes(one) == ["m1", "m2"] and weights(one) == [("m2", 1)])

    trio.run(main)


def test_what_does_not_come_back_after_a_loss(machines, consul_agent):
    """A machine that died together with Consul's data is held for the grace only."""

    async def main():
        async with machines.machine("m1", grace=3) as one:
            async with machines.machine("m2") as two:
                await two.register(serving())
                await until(lambda: weights(one) == [("m2", 1)])
            await trio.to_thread.run_sync(lambda: consul_agent.stop(wipe=True))
            await trio.to_thread.run_sync(consul_agent.start)
            await until(lambda: one.facts.held_since is None)
            assert weights(one) == [("m2", 1)]
            await until(lambda: nodes(one) == ["m1"] and weights(one) == [])

    trio.run(main)


def test_joining_a_mesh(machines, consul_agent):
    """A machine that ran alone brings what the mesh does not know; what it removed or has otherwise changes nothing."""

    async def alone():
        store = LocalStore(machines.folder / "m2", clock=lambda: 9e9)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_registry, store)
            for name in ("web", "mine", "gone"):
                await store.put_spec(replace(SPEC, name=name, count=9))
            await store.remove_spec("gone")
            await store.put_spec(replace(SPEC, name="removed"))
            await store.remove_spec("web")
            nursery.cancel_scope.cancel()

    async def main():
        async with machines.machine("m1") as one:
            await one.put_spec(SPEC)
            await one.put_spec(replace(SPEC, name="removed"))
            await one.remove_spec("removed")
            async with machines.machine("m2") as two:
                await until(lambda: set(one.facts.specs) == set(two.facts.specs) == {"web", "mine"})
                assert one.facts.specs["web"] == two.facts.specs["web"] == SPEC
                assert set(one.facts.tombstones) == set(two.facts.tombstones) == {"removed"}
            keys = {"epoch", "specs/web", "specs/mine", "specs/removed"}
            assert set(consul_agent.get("/v1/kv/meshbox/?keys")) == {f"meshbox/{key}" for key in keys}

    trio.run(alone)
    trio.run(main)
    trio.run(alone)
    trio.run(main)


def test_moving_to_another_consul(machines, consul_agent):
    """What is known from one Consul is not written over another, and its machines are none of that one's."""

    async def main():
        async with machines.machine("m1") as one, machines.machine("m3") as three:
            for name in ("web", "gone"):
                await one.put_spec(replace(SPEC, name=name))
            await one.remove_spec("gone")
            await three.register(serving())
            await until(lambda: nodes(one) == ["m1", "m3"] and weights(one))
        await trio.to_thread.run_sync(lambda: consul_agent.stop(wipe=True))
        await trio.to_thread.run_sync(consul_agent.start)
        async with machines.machine("m4", clock=lambda: 5.0) as four:
            await four.put_spec(replace(SPEC, count=4))
            await four.put_spec(replace(SPEC, name="gone"))
            async with machines.machine("m1") as one:
                await until(lambda: nodes(one) == nodes(four) == ["m1", "m4"])
                assert one.facts.specs == four.facts.specs == {"web": replace(SPEC, count=4), "gone": SPEC_GONE}
                assert weights(one) == []
                assert one.facts.held_since is None

    trio.run(main)


def test_machines_of_another_consul_may_not_call(machines, consul_agent, monkeypatch):
    """They are forgotten at once, also while the other Consul does not show this machine yet."""

    async def idle(_announcer, _heart, *, task_status):
        task_status.started()
        await trio.sleep_forever()

    async def main():
        async with machines.machine("m1") as one, machines.machine("m3") as three:
            await three.register(serving())
            await until(lambda: nodes(one) == ["m1", "m3"] and weights(one))
        await trio.to_thread.run_sync(lambda: consul_agent.stop(wipe=True))
        await trio.to_thread.run_sync(consul_agent.start)
        consul_agent.request("PUT", "/v1/kv/meshbox/epoch", "another")
        monkeypatch.setattr(Announcer, "_beat_on", idle)
        async with machines.machine("m1") as one:
            await until(lambda: one.facts.machines == one.facts.endpoints == ())

    trio.run(main)


def test_a_machines_name_is_taken_by_nobody(machines, consul_agent):
    """Another Consul node registers a machine of that name: the first one stays what it was, and the other is named."""
    rogue = {"ID": "meshbox:m1", "Service": "meshbox", "Address": "10.0.0.66", "Meta": {"node": "m1"}}

    async def main():
        async with machines.machine("m1"), machines.machine("m2") as two:
            await until(lambda: nodes(two) == ["m1", "m2"])
            await trio.to_thread.run_sync(
                consul_agent.request,
                "PUT",
                "/v1/catalog/register",
                {"Node": "a-node", "Address": "10.0.0.66", "Service": rogue},
            )
            await until(lambda: two.facts.problems)
            assert [str(m.address) for m in two.facts.machines] == ["10.0.0.1", "10.0.0.2"]
            assert "10.0.0.1 (Consul node consul-1) and 10.0.0.66 (a-node)" in two.facts.problems[0]

    try:
        trio.run(main)
    finally:
        consul_agent.request("PUT", "/v1/catalog/deregister", {"Node": "a-node"})


def test_hundreds_of_services_few_queries(machines, consul_agent):
    """With Consul's default limit of connections, 300 services are watched over at most 64 queries, and change."""
    services = frozenset(f"s{n}" for n in range(300))

    async def main():
        async with (
            machines.machine("m1", watch=services) as one,
            machines.machine("m2", watch=frozenset()) as two,
        ):
            await until(lambda: one.facts.open_queries > 40)
            for name in ("s0", "s299", "s77"):
                await two.register(serving(destination=Destination.parse(f"x.{name}:1")))
            await until(lambda: len(one.facts.endpoints) == 3)
            assert one.facts.open_queries <= 64
            await two.deregister(serving(destination=Destination.parse("x.s299:1")))
            await until(lambda: len(one.facts.endpoints) == 2)
            assert one.facts.held_since is None

    trio.run(main)


def test_few_queries_whatever_goes_wrong(machines, consul_agent):
    """Errors, seconds of delay and a restart of Consul do not make them more than 64 either."""
    services = frozenset(f"s{n}" for n in range(70))

    async def main():
        faulty = FaultyConsul(machines.settings.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            async with (
                machines.machine("m1", address=faulty.address, watch=services) as one,
                machines.machine("m2", watch=frozenset()) as two,
            ):
                await until(lambda: one.facts.open_queries > 40)
                for number, trouble in enumerate(({"status": 500}, {"delay": 1.0})):
                    for name, value in trouble.items():
                        setattr(faulty, name, value)
                    await two.register(serving(destination=Destination.parse(f"x.s{number}:1")))  # wakes all queries
                    await until(lambda: one.facts.held_since is not None or faulty.delay)
                    await trio.sleep(3 * QUIET)
                    for name in trouble:
                        setattr(faulty, name, getattr(FaultyConsul(""), name))
                    await until(lambda: one.facts.held_since is None)
                await trio.to_thread.run_sync(consul_agent.stop)
                await until(lambda: one.facts.held_since is not None)
                await trio.to_thread.run_sync(consul_agent.start)
                await until(lambda: one.facts.held_since is None and len(one.facts.endpoints) == 2)
                assert 40 < faulty.most <= 64
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_looking_at_what_is_not_watched(machines, consul_agent):
    """What other machines serve can be looked at without watching it; without Consul, only what is known is shown."""
    apple = Destination.parse("apple.orange:80")

    async def main():
        faulty = FaultyConsul(machines.settings.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            async with machines.machine("m1") as one, machines.machine("m2", address=faulty.address) as two:
                await one.register(replace(serving(), revisions=(("0a1b2c3d", 1),)))
                await one.register(serving(destination=apple, port=20001))
                await until(lambda: weights(two) == [("m1", 1)])
                await until(lambda: "meshbox:m1:apple.orange:80/tcp" in consul_agent.get("/v1/agent/services"))
                found = await two.look(Interests(services=frozenset({"web", "orange", "none"})))
                assert {(e.destination, e.revisions) for e in found} == {(WEB, (("0a1b2c3d", 1),)), (apple, ())}
                assert await one.look(Interests(services=frozenset({"orange"}))) == ()
                assert {e.destination for e in await two.look(Interests(everything=True))} == {WEB, apple}
                assert await one.look(Interests(everything=True)) == ()
                faulty.status = 500
                faulty.hang_up()
                await until(lambda: two.facts.held_since)
                assert {e.destination for e in await two.look(Interests(services=frozenset({"web", "orange"})))} == {
                    WEB
                }
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_idle_is_quiet(machines):
    """Without changes, an appliance asks nothing but its heartbeat."""

    async def main():
        faulty = FaultyConsul(machines.settings.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            async with machines.machine("m1", address=faulty.address, watch=frozenset({"a", "b"})) as one:
                await until(lambda: one.facts.open_queries == 4)
                await trio.sleep(QUIET)
                faulty.requests.clear()
                await trio.sleep(2)
                assert [r for r in faulty.requests if "/check/pass/" not in r] == []
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_specs_that_are_not_ours(machines, consul_agent):
    """A key of a newer version, or of somebody else, is left alone and reported, also by a deploy."""
    newer = {"schema": 99, "changed": 1, "anything": True}
    consul_agent.request("PUT", "/v1/kv/meshbox/specs/web", newer)
    consul_agent.request("PUT", "/v1/kv/meshbox/specs/note", "hello")

    async def main():
        async with machines.machine("m1") as one:
            assert one.facts.specs == {}
            assert len(one.facts.problems) == 2
            assert "written by a newer meshbox (schema 99)" in one.facts.problems[1]
            with pytest.raises(HostError, match="written by a newer meshbox"):
                await one.put_spec(SPEC)

    trio.run(main)
    assert consul_agent.request("GET", "/v1/kv/meshbox/specs/web?raw").json() == newer


BAD_ENDPOINTS = {
    "replicas": LARGE,
    "revisions": f"a:{LARGE}",
    "port": HUGE,
    "protocol": EVIL,
    "container": EVIL,
}


def test_whatever_is_registered(machines, consul_agent):
    """Bad entries of machines, endpoints and specs are named; good ones count, also after a restart from disk."""

    def register(service_id, name, port, meta):
        body = {"ID": service_id, "Name": name, "Address": "10.0.0.7", "Port": port, "Meta": meta}
        assert consul_agent.request("PUT", "/v1/agent/service/register", body).status_code == 200

    good = {"node": "m7", "container": "web", "port": "80", "protocol": "tcp", "replicas": "1", "revisions": "a:1"}
    register("meshbox:m7", "meshbox", 29999, {"node": "m7", "constraints": "{}"})
    register("meshbox:m8", "meshbox", 99999, {"node": "m8", "constraints": "[" * 500})
    register(f"meshbox:{EVIL}", "meshbox", 1, {"node": EVIL})
    register("meshbox:m7:web.web:80/tcp", "web", 20000, good)
    register("meshbox:m7:web.web:81/tcp", "web", 99999, good | {"port": "81"})
    register("meshbox:m7:web.web:82/tcp", "web", -1, good | {"port": "82"})
    for number, (key, value) in enumerate(BAD_ENDPOINTS.items(), start=90):
        register(f"meshbox:m7:web.web:{number}/tcp", "web", 20000, good | {"port": str(number), key: value[:500]})
    spec = {"schema": 1, "changed": 5.0}
    container = {"name": "web", "image": "x"}
    for name, fields in (
        ("digits", {"ports": [HUGE]}),
        ("hours", {"health": {"command": "x", "interval": f"{LARGE}h"}}),
        ("web", {}),
    ):
        service = {"name": name, "containers": [container | fields]}
        consul_agent.request("PUT", f"/v1/kv/meshbox/specs/{name}", spec | {"service": service})
    consul_agent.request("PUT", "/v1/kv/meshbox/specs/late", spec | {"changed": LARGE, "removed": True})

    async def main():
        for _ in ("first", "again"):
            async with machines.machine("m1") as one:
                await until(lambda: nodes(one) == ["m1", "m7"])
                await until(lambda: {e.destination.port for e in one.facts.endpoints} >= {80, 91})
                assert all(1 <= e.port <= 65535 and e.weight == 1 for e in one.facts.endpoints)
                assert one.facts.specs.keys() == {"web"}
                await until(lambda: len(one.facts.problems) >= 10)
                for words in one.facts.problems:
                    check_shown(words)
                assert one.facts.held_since is None

    trio.run(main)


def test_two_machines_of_one_name(machines, consul_agent, tmp_path):
    """Both addresses are named to the administrator, and one of the two counts."""
    other = ConsulAgent(
        tmp_path / "other",
        node="consul-2",
        base_port=free_ports(3),
        join=(f"127.0.0.1:{consul_agent.base_port + 2}",),
        servers=0,
        server=False,
    )

    async def main():
        await trio.to_thread.run_sync(other.start)
        async with machines.machine("m1") as one:
            machines.folder = tmp_path / "elsewhere"
            async with machines.machine("m1", address=other.address, at="10.0.0.9", host="another"):
                await until(lambda: one.facts.problems)
                assert 'two machines call themselves "m1": 10.0.0.1' in one.facts.problems[0]
                assert "10.0.0.9 (consul-2)" in one.facts.problems[0]
                assert nodes(one) == ["m1"]
                for agent, address in ((consul_agent, "10.0.0.1"), (other, "10.0.0.9")):
                    assert agent.get("/v1/agent/services")["meshbox:m1"]["Address"] == address, (
                        "neither harms the other"
                    )

    try:
        trio.run(main)
    finally:
        other.stop()


def test_two_machines_of_one_name_at_one_agent(machines, consul_agent, tmp_path):
    """The one that came first stays as it is, the other is told and registers nothing, until the first has ended."""
    apple = serving(destination=Destination.parse("apple.web:80"))

    async def main():
        async with machines.machine("m1") as one, machines.machine("m2") as two:
            await one.register(serving(2))
            await until(lambda: weights(two) == [("m1", 2)])
            machines.folder = tmp_path / "elsewhere"
            async with machines.machine("m1", at="10.0.0.9", host="another") as other:
                await until(lambda: 'another appliance calls itself "m1" at this Consul agent' in other.facts.held_why)
                await other.register(apple)
                with trio.move_on_after(SETTLE + 2):  # in which it would remove what it takes for leftovers
                    await until(lambda: weights(two) != [("m1", 2)])
                assert weights(two) == [("m1", 2)]
                assert two.facts.machines[0].address == IPv4Address("10.0.0.1")
                await other.withdraw()
            assert set(consul_agent.get("/v1/agent/services")) == {
                "meshbox:m1",
                "meshbox:m1:web.web:80/tcp",
                "meshbox:m2",
            }
            assert one.facts.held_since is None

    trio.run(main)


def test_two_machines_of_one_address(machines):
    """Where two share an agent, whose address is theirs, both are named and what to do is said."""

    async def main():
        async with machines.machine("m1", at="agent") as one, machines.machine("m2", at="agent"):
            await until(lambda: one.facts.problems)
            assert "machines m1 and m2 both claim the address 127.0.0.1; give each a Consul" in one.facts.problems[0]
            assert nodes(one) == ["m1", "m2"]

    trio.run(main)


def test_clock_that_jumps(machines):
    """A deploy by a machine whose clock is far ahead or behind is a change like any other."""

    async def main():
        async with (
            machines.machine("m1", clock=lambda: 5e9) as ahead,
            machines.machine("m2", clock=lambda: 5.0) as behind,
        ):
            for number in range(1, 5):
                await (ahead if number % 2 else behind).put_spec(replace(SPEC, count=number))
                await until(
                    lambda number=number: (
                        ahead.facts.specs.get("web") == behind.facts.specs.get("web") == replace(SPEC, count=number)
                    )
                )
            assert await behind.remove_spec("web")
            await until(lambda: not ahead.facts.specs)

    trio.run(main)


def test_access_control(tmp_path):
    """With everything denied by default the token of the documents does; whichever rule is missing, it is named."""
    agent = ConsulAgent(
        tmp_path / "consul",
        base_port=free_ports(3),
        hcl='acl { enabled = true, default_policy = "deny", tokens { master = "root", agent = "root" } }',
        token="root",
    )

    def token(rules: str) -> str:
        name = f"p{len(rules)}"
        wait_until(
            lambda: agent.request("PUT", "/v1/acl/policy", {"Name": name, "Rules": rules}).status_code == 200,
            "Consul takes policies",
        )
        return agent.request("PUT", "/v1/acl/token", {"Policies": [{"Name": name}]}).json()["SecretID"]

    async def sound():
        file = tmp_path / "token"
        file.write_text(token(ACL_RULES) + "\n")
        machines = Machines(tmp_path, agent.address, token_file=str(file))
        async with machines.machine("m1", at="agent") as one, machines.machine("m2") as two:
            await one.register(serving())
            await two.put_spec(SPEC)
            await until(lambda: weights(two) == [("m1", 1)] and one.facts.specs)
            assert one.facts.held_since is None
        api = ConsulApi(machines.settings)
        await api.join(f"127.0.0.1:{agent.base_port + 2}")  # as after a cut
        await api.aclose()

    async def lacking(rules: str, complaint: str):
        machines = Machines(tmp_path / str(len(rules)), agent.address, token=token(rules))
        async with machines.machine("m3", at="agent") as three:
            await three.register(serving())
            await until(
                lambda: f"{complaint}_prefix" in three.facts.held_why or f"{complaint} " in three.facts.held_why
            )
            assert re.search(r"policy (needs|lacks)", three.facts.held_why)

    async def refused():
        machines = Machines(tmp_path / "refused", agent.address, token=token(ACL_RULES.replace("write", "read")))
        async with machines.machine("m3") as three:
            with pytest.raises(RetryError, match=r'needs key_prefix "meshbox/" \{ policy = "write" \}'):
                await three.put_spec(SPEC)

    async def unknown():
        machines = Machines(tmp_path / "unknown", agent.address, token="00000000-0000-0000-0000-000000000000")
        async with machines.machine("m3") as three:
            await until(lambda: "does not know our ACL token" in three.facts.held_why)

    try:
        agent.start()
        trio.run(sound)
        for rule in ACL_RULES.splitlines():
            trio.run(lacking, ACL_RULES.replace(rule, ""), rule.partition(" ")[0].removesuffix("_prefix"))
        trio.run(refused)
        trio.run(unknown)
    finally:
        agent.stop()


def test_spec_in_consul_is_readable(machines, consul_agent):
    """The stored value is plain JSON in the words of a spec file."""

    async def main():
        async with machines.machine("m1", clock=lambda: 1000.0) as one:
            await one.put_spec(SPEC)

    trio.run(main)
    value = consul_agent.request("GET", "/v1/kv/meshbox/specs/web?raw").content
    assert orjson.loads(value) == {
        "schema": 1,
        "changed": 1000.0,
        "service": {"name": "web", "count": 1, "containers": [{"name": "web", "image": "x"}]},
    }


def test_no_part_takes_anything_with_it_that_was_known(machines, consul_agent):
    """Each in turn fails and is run again: all facts stay, the other machine sees nothing of it, and both go on."""

    async def main():
        async with machines.machine("m2") as two, trio.open_nursery() as nursery:
            nursery.start_soon(see, two)
            one, scopes = machines.made("m1"), {}
            for part in one.parts:
                await nursery.start(run_again, part, scopes)
            one.watch(Interests(services=ALL))
            await two.register(serving(1))
            await one.register(serving(5))
            await one.put_spec(SPEC)
            await until(lambda: weights(one) == [("m2", 1)] and weights(two) == [("m1", 5)] and two.facts.specs)
            known = one.facts
            for name, scope in scopes.items():
                for _ in range(2):
                    scope.cancel()
                    await trio.sleep(0.1)
                assert (one.facts.specs, one.facts.endpoints) == (known.specs, known.endpoints), name
                assert nodes(one) == ["m1", "m2"], name
                assert weights(two) == [("m1", 5)], name
                assert nodes(two) == ["m1", "m2"], name
            await two.register(serving(2))
            await one.register(serving(6))
            await one.put_spec(SPEC_GONE)
            await until(lambda: weights(one) == [("m2", 2)] and weights(two) == [("m1", 6)])
            await until(lambda: "gone" in two.facts.specs)
            with pytest.raises(NoAnswerError, match="does not say that"):  # it answers machines of the mesh
                await ask("m1", IPv4Address("127.0.0.1"), next(iter(one.facts.own_ports)))
            nursery.cancel_scope.cancel()
        await one.close()

    async def see(two):
        while True:
            seen.append((nodes(two), bool(weights(two))))
            await trio.sleep(0.005)

    seen = []
    trio.run(main)
    complete = seen.index((["m1", "m2"], True))
    assert all(now == (["m1", "m2"], True) for now in seen[complete:])
