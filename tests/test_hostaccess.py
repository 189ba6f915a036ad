"""Names for processes of the host: put again when others rewrite them, undone at the end and after a former run."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
import trio
import trio.testing

from appliance.config import Config
from appliance.drivers.hostnames import HostNames
from appliance.errors import HostError
from appliance.hostaccess import LOOK, HostAccess
from appliance.logs import Faults
from appliance.model.visitors import ConnectTo, Visitors

SERVED = Visitors(host=ConnectTo(everything=True), dns_listen=frozenset({IPv4Address("127.66.0.53")}))


@pytest.fixture
def done(monkeypatch):
    """What was done to the host, and an error that putting raises while there is one."""
    found = {"deeds": [], "error": None}

    async def put(_self, servers, **_):
        await trio.lowlevel.checkpoint()
        if found["error"]:
            raise found["error"]
        found["deeds"].append(f"put {' '.join(map(str, servers))}")

    async def undo(_self):
        await trio.lowlevel.checkpoint()
        found["deeds"].append("undo")
        return []

    monkeypatch.setattr(HostNames, "put", put)
    monkeypatch.setattr(HostNames, "undo", undo)
    return found


def run(visitors, between, faults=None):
    """Run it on a virtual clock, with something in between start and stop."""

    async def main():
        access = HostAccess(Config(), visitors, faults or Faults())
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
