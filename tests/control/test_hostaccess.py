"""Names for processes of the host: put again when others rewrite them, undone at the end and after a former run."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import trio
import trio.testing

from appliance.config.options import Config
from appliance.control.hostaccess import LOOK, SETTLE, HostAccess
from appliance.drivers.host.resolvconf import ResolverSettings
from appliance.errors import HostError
from appliance.faults import Faults
from appliance.model.names import Allowance
from appliance.model.visitors import ConnectTo, Visitors

SERVED = Visitors(host=ConnectTo(everything=True), dns_listen=frozenset({IPv4Address("127.66.0.53")}))


@pytest.fixture
def done(monkeypatch):
    """What was done to the host, and an error that putting raises while there is one."""
    found = {"deeds": [], "domains": [], "error": None}

    async def put(_self, server, *, domains, **_):
        await trio.lowlevel.checkpoint()
        if found["error"]:
            raise found["error"]
        found["deeds"].append(f"put {server}")
        found["domains"].append(" ".join(sorted(domains)))

    async def undo(_self):
        await trio.lowlevel.checkpoint()
        found["deeds"].append("undo")
        return []

    monkeypatch.setattr(ResolverSettings, "apply", put)
    monkeypatch.setattr(ResolverSettings, "revert", undo)
    return found


def run(visitors, between, faults=None, services=frozenset):
    """Run it on a virtual clock, with something in between start and stop."""

    async def main():
        access = HostAccess(Config(), visitors, faults or Faults(), services=services)
        async with trio.open_nursery() as nursery:
            await nursery.start(access.run)
            await between(access)
            await access.stop()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_put_again_and_undone(done) -> None:
    """Every half a minute it is put again; after stop it is undone, and nothing puts it again."""

    async def wait(access):
        await trio.sleep(LOOK * 1.5)
        await access.stop()
        await trio.sleep(LOOK * 5)

    run(SERVED, wait)
    assert done["deeds"] == ["put 127.66.0.53", "put 127.66.0.53", "undo", "undo"]


def test_without_host_access_a_former_run_is_undone(done) -> None:
    """What a run that was killed has left goes at the next start, and stopping touches nothing."""

    async def nothing(_):
        await trio.lowlevel.checkpoint()

    run(Visitors(), nothing)
    assert done["deeds"] == ["undo"]


def test_a_fault_is_reported_and_tried_again(done) -> None:
    """A resolv.conf that cannot be written keeps nothing else from starting."""
    faults = Faults()
    done["error"] = HostError("cannot write it")

    async def mend(_):
        assert faults.list()["host names"].cause == "cannot write it"
        done["error"] = None
        await trio.sleep(LOOK * 1.5)
        assert faults.list() == {}

    run(SERVED, mend, faults)
    assert done["deeds"] == ["put 127.66.0.53", "undo"]


def test_domains_follow_the_services(done) -> None:
    """With `*` the names that are routed to us are those of the services that exist: never all names."""
    services = {"flask"}

    async def change(access):
        services.add("orange")
        access.changed()
        services.add("pear")
        access.changed()
        access.changed()
        await trio.sleep(SETTLE * 1.5)
        services.remove("flask")
        access.changed()
        await trio.sleep(SETTLE * 1.5)
        access.changed()
        await trio.sleep(SETTLE * 1.5)

    run(SERVED, change, services=lambda: frozenset(services))
    assert done["domains"] == ["flask mesh.internal", "flask mesh.internal orange pear", "mesh.internal orange pear"]


def test_domains_are_what_is_declared(done) -> None:
    """With a list they are its names, whatever else exists."""
    some = ConnectTo(allowances=(Allowance.parse("redis.flask:8080"), Allowance.parse("apple.orange")))

    async def change(access):
        access.changed()
        await trio.sleep(SETTLE * 1.5)

    run(replace(SERVED, host=some), change, services=lambda: frozenset({"pear"}))
    assert done["domains"] == ["apple.orange mesh.internal redis.flask"]


def test_one_server_is_put(done) -> None:
    """Several addresses for DNS do not crowd out the host's own resolvers."""

    async def nothing(_):
        await trio.lowlevel.checkpoint()

    run(replace(SERVED, dns_listen=frozenset({IPv4Address("10.0.0.1"), IPv4Address("127.66.0.53")})), nothing)
    assert done["deeds"] == ["put 127.66.0.53", "undo"]


def test_run_again_it_puts_again_and_stopped_it_ends(done) -> None:
    """As its supervisor does after a failure; what was stopped is not put again."""

    async def main():
        access = HostAccess(Config(), SERVED, Faults(), services=frozenset)
        for _ in range(2):
            with trio.move_on_after(1):
                await access.run()
        await access.stop()
        await access.run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert done["deeds"] == ["put 127.66.0.53", "put 127.66.0.53", "undo"]
