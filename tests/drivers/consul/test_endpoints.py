"""Which endpoints there are, from what Consul answers. The clock is virtual, and Consul is played by a few answers."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from together import run_together

from appliance.drivers.consul.codec import destination_service
from appliance.drivers.consul.endpoints import Endpoints
from appliance.drivers.consul.loss import LossDetector
from appliance.drivers.consul.staleness import Staleness
from appliance.drivers.consul.watch import Queries
from appliance.errors import RetryError
from appliance.model.facts import Machine
from appliance.model.names import Destination
from appliance.model.network import Registration
from appliance.model.registry import Interests
from tests.drivers.fakekeys import FakeKeys

WEB, SHOP = Destination.parse("web.web:80"), Destination.parse("till.shop:80")


def entry(node, destination):
    """What Consul says of an endpoint in a health query."""
    machine = Machine(node=f"m{node}", address=f"10.0.0.{node}")
    arguments = destination_service(machine, Registration(destination=destination, proxy_port=20000, weight=1))
    return {
        "Node": {"Node": "consul", "Address": arguments["address"]},
        "Service": {"ID": arguments["service_id"], "Service": arguments["name"], "Meta": arguments["meta"]}
        | {"Address": arguments["address"], "Port": arguments["port"]},
        "Checks": [],
    }


class FakeCatalogue(FakeKeys):
    """A catalogue whose queries wait until it is told that something has changed."""

    def __init__(self):
        super().__init__()
        self.machines = [{"Service": {"ID": "meshbox:m1"}}]
        self.served: dict[str, list[dict]] = {}
        self.asked: list[str] = []
        self._moved = trio.Event()

    def serve(self, **services):
        """Replace what Consul has of these services, and end the queries that wait."""
        self.served |= services
        self.index += 1
        self._moved.set()
        self._moved = trio.Event()

    async def _wait(self, index):
        self._check()
        while index == self.index:
            await self._moved.wait()
        self._check()

    async def health(self, service, index=0):
        if service == "meshbox":
            return await super().health(service)
        self.asked.append(service)
        await self._wait(index)
        return self.index, self.served.get(service, [])

    async def catalogue(self, index=0):
        return (await self.services(index))[0]

    async def services(self, index=0):
        await self._wait(index)
        return self.index, frozenset(self.served) | {"consul", "meshbox"}


class World:
    """The endpoints as m1 knows them."""

    def __init__(self):
        self.consul = FakeCatalogue()
        self.changes = 0
        self.staleness = Staleness(trio.current_time, lambda: None)
        self.loss = LossDetector(self.consul, self.staleness, "m1", lost=lambda: None, other=lambda: None)
        self.endpoints = Endpoints(
            self.consul, self.staleness, self.loss, Queries(self.staleness), changed=self._changed
        )

    def _changed(self):
        self.changes += 1

    def known(self):
        """What is known, as node and destination."""
        return [(e.node, str(e.destination)) for e in self.endpoints]


def run(script):
    """Run a script beside running endpoints, on virtual time."""

    async def main():
        world = World()
        async with trio.open_nursery() as nursery:
            await nursery.start(run_together, world.endpoints.parts)
            await script(world)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def some(*services):
    """Interest in a few services."""
    return Interests(services=frozenset(services))


def test_services_of_interest_are_followed():
    """Endpoints come and go with what Consul says; those of other services are dropped, and not read."""

    async def script(world):
        await world.loss.look()
        world.consul.serve(web=[entry(3, WEB), entry(2, WEB)], shop=[entry(2, SHOP)])
        world.endpoints.watch(some("web"))
        await trio.sleep(1)
        assert world.known() == [("m2", "web.web:80/tcp"), ("m3", "web.web:80/tcp")]
        before = world.changes
        world.consul.serve(web=[entry(3, WEB)])
        await trio.sleep(1)
        assert world.known() == [("m3", "web.web:80/tcp")]
        assert world.changes == before + 1
        assert set(world.consul.asked) == {"web"}
        world.endpoints.watch(some("shop"))
        assert world.known() == []
        await trio.sleep(1)
        assert world.known() == [("m2", "till.shop:80/tcp")]

    run(script)


def test_everything():
    """All services of the catalogue are followed, also new ones, as long as all are of interest."""

    async def script(world):
        world.consul.serve(web=[entry(2, WEB)])
        world.endpoints.watch(Interests(everything=True))
        await trio.sleep(1)
        assert world.known() == [("m2", "web.web:80/tcp")]
        world.consul.serve(shop=[entry(2, SHOP)])
        await trio.sleep(1)
        assert world.known() == [("m2", "till.shop:80/tcp"), ("m2", "web.web:80/tcp")]
        assert set(world.consul.asked) == {"shop", "web"}, "neither machines nor Consul itself"
        world.endpoints.watch(some("web"))
        assert world.known() == [("m2", "web.web:80/tcp")]

    run(script)


def test_what_was_lost_is_held_until_it_is_settled():
    """After a loss endpoints are missing, and known until what has not come back is dropped."""

    async def script(world):
        await world.loss.look()
        world.consul.serve(web=[entry(2, WEB), entry(3, WEB)])
        world.endpoints.watch(some("web"))
        await trio.sleep(1)
        world.consul.keys.clear()
        world.consul.serve(web=[entry(3, WEB)])
        await trio.sleep(1)
        assert len(world.known()) == 2
        before = world.changes
        world.endpoints.settle()
        assert world.known() == [("m3", "web.web:80/tcp")]
        assert world.changes == before + 1

    run(script)


def test_before_the_first_answer():
    """What was known before the start counts until Consul says otherwise, or is another one."""

    async def script(world):
        world.consul.serve(web=[entry(2, WEB)])
        known = await world.endpoints.ask(frozenset({"web"}))
        world.endpoints.restore(known)
        assert world.known() == [("m2", "web.web:80/tcp")]
        world.endpoints.forget()
        assert world.known() == []

    run(script)


def test_what_is_not_watched_is_asked_for():
    """That is read each time; what is watched is known; and while facts are held nothing is asked."""

    async def script(world):
        world.consul.serve(web=[entry(2, WEB)], shop=[entry(2, SHOP)])
        world.endpoints.watch(some("web"))
        await trio.sleep(1)
        world.consul.asked.clear()
        everything = await world.endpoints.names()
        assert everything == {"web", "shop"}
        assert [e.destination for e in await world.endpoints.ask(everything | {"none"})] == [SHOP]
        assert world.consul.asked == ["none", "shop"]
        world.consul.asked.clear()
        world.staleness.failed("specs", "no leader")
        assert await world.endpoints.ask(everything) == []
        assert await world.endpoints.names() == frozenset()
        assert world.consul.asked == []

    run(script)


def test_asking_never_fails():
    """What cannot be asked for is left out."""

    async def script(world):
        world.consul.serve(web=[entry(2, WEB)])
        world.consul.down = True
        with pytest.raises(RetryError):
            await world.consul.services()
        assert await world.endpoints.names() == frozenset()
        assert await world.endpoints.ask(frozenset({"web"})) == []

    run(script)


def test_complaints():
    """What cannot be read is told by service, until it is mended or of no interest."""

    async def script(world):
        await world.loss.look()
        broken = {service: entry(2, destination) for service, destination in (("web", WEB), ("shop", SHOP))}
        for one in broken.values():
            one["Service"]["Meta"]["replicas"] = "many"
        world.consul.serve(**{service: [one] for service, one in broken.items()})
        world.endpoints.watch(some("web", "shop"))
        await trio.sleep(1)
        assert [complaint.partition(" in Consul")[0] for complaint in world.endpoints.complaints] == [
            '"meshbox:m2:till.shop:80/tcp"',
            '"meshbox:m2:web.web:80/tcp"',
        ]
        world.consul.serve(web=[entry(2, WEB)])
        await trio.sleep(1)
        assert len(world.endpoints.complaints) == 1
        world.consul.serve(shop=[entry(2, SHOP)])
        await trio.sleep(1)
        assert world.endpoints.complaints == ()

    run(script)
