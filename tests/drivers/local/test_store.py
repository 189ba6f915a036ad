"""The embedded store: what it says is on disk."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import trio
from structlog.testing import capture_logs
from together import run_registry

from appliance.drivers.consul import cache
from appliance.drivers.local.store import TOMBSTONE_LIFE, LocalStore
from appliance.errors import HostError, RetryError
from appliance.model.facts import Allocations
from appliance.model.names import Name
from appliance.model.registry import Interests
from appliance.model.spec import Container, Service

WEB = Service(name="web", containers=(Container(name="web", image="x"),))
ALLOCATIONS = Allocations(vips={Name.parse("web.web"): IPv4Address("240.0.0.9")})


class Clock:
    """A clock that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def opened(folder, **fields) -> LocalStore:
    """A store that has read its file."""
    store = LocalStore(folder, clock=fields.pop("clock", Clock()), **fields)
    await store.load()
    return store


def test_survives_a_restart(tmp_path):
    """Specs, tombstones and allocations are there again for the next process."""

    async def main():
        store = await opened(tmp_path / "not" / "yet" / "there")
        await store.put_spec(WEB)
        await store.put_spec(replace(WEB, name="gone"))
        assert await store.remove_spec("gone")
        await store.keep_allocations(ALLOCATIONS)
        with capture_logs() as logs:
            again = await opened(tmp_path / "not" / "yet" / "there")
        assert again.facts == store.facts
        assert again.specs == {"web": WEB}
        assert again.tombstones == {"gone": 1000.0}
        assert again.allocations == ALLOCATIONS
        assert logs == [], "nothing is damaged"

    trio.run(main)


def test_what_was_known_from_consul_is_forgotten(tmp_path):
    """From now on the file changes without Consul, so what a Consul said when is no evidence later."""
    (tmp_path / cache.NAME).write_bytes(b"{}")

    async def main():
        async with trio.open_nursery() as nursery:
            await nursery.start(run_registry, LocalStore(tmp_path))
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not (tmp_path / cache.NAME).exists()


def test_removal_and_deploying_again(tmp_path):
    """A removal leaves a tombstone, a deploy takes it away; what does not exist cannot be removed."""

    async def main():
        clock = Clock()
        store = await opened(tmp_path, clock=clock)
        assert not await store.remove_spec("web")
        assert store.tombstones == {}
        await store.put_spec(WEB)
        await store.remove_spec("web")
        await store.put_spec(WEB)
        assert store.tombstones == {}
        await store.remove_spec("web")
        clock.now += TOMBSTONE_LIFE
        await store.put_spec(replace(WEB, name="x"))
        await store.remove_spec("x")
        assert store.tombstones == {"x": clock.now}

    trio.run(main)


def test_bell(tmp_path):
    """Changes of specs ring the bell; allocations do not, because only the appliance itself makes them."""

    async def main():
        rings = []
        store = await opened(tmp_path, bell=lambda: rings.append(1))
        rings.clear()
        await store.keep_allocations(ALLOCATIONS)
        assert rings == []
        await store.put_spec(WEB)
        await store.put_spec(WEB)
        assert len(rings) == 1
        assert store.facts.specs == {"web": WEB}
        assert store.facts.allocations == ALLOCATIONS

    trio.run(main)


@pytest.mark.parametrize("content", [b"{", b'{"schema": 1, "specs": [{"name": "bad"}], "tombstones": {"old": 5}}'])
def test_damaged_file(tmp_path, content):
    """A damaged file is moved aside and reported, what can be read of it is used, and the store goes on."""

    async def main():
        (tmp_path / "state.json").write_bytes(content)
        with capture_logs() as logs:
            store = await opened(tmp_path)
        moved = tmp_path / "state.json.damaged-1000"
        assert moved.read_bytes() == content
        assert [(entry["event"], entry["moved_to"]) for entry in logs] == [("the state file is damaged", str(moved))]
        assert store.specs == {}
        assert store.tombstones == ({"old": 5} if b"old" in content else {})
        await store.put_spec(WEB)
        assert (await opened(tmp_path)).specs == {"web": WEB}

    trio.run(main)


def test_newer_file_is_left_alone(tmp_path):
    """A file that a newer meshbox wrote stops the start and stays as it is."""

    async def main():
        path = tmp_path / "state.json"
        path.write_bytes(b'{"schema": 99}')
        with pytest.raises(HostError, match="newer meshbox"):
            await opened(tmp_path)
        assert path.read_bytes() == b'{"schema": 99}'
        assert list(tmp_path.iterdir()) == [path]

    trio.run(main)


def test_unreadable_file(tmp_path):
    """A file that cannot be read is named, with the system's own reason."""
    (tmp_path / "state.json").mkdir()
    with pytest.raises(HostError, match=r"cannot read .*state\.json: Is a directory"):
        trio.run(opened, tmp_path)


def test_disk_refuses(tmp_path):
    """When the disk refuses, the error says so and the store still says what is on disk."""

    async def main():
        store = await opened(tmp_path)
        await store.put_spec(WEB)
        (tmp_path / "state.json.new").mkdir()
        with pytest.raises(RetryError, match=r"cannot write .*state\.json"):
            await store.put_spec(replace(WEB, count=9))
        with pytest.raises(RetryError):
            await store.remove_spec("web")
        assert store.specs == {"web": WEB} == (await opened(tmp_path)).specs

    trio.run(main)


def test_concurrent_changes(tmp_path):
    """Changes at the same time are all kept."""

    async def main():
        store = await opened(tmp_path)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(store.put_spec, replace(WEB, name=f"s{number}"))
            nursery.start_soon(store.keep_allocations, ALLOCATIONS)
        again = await opened(tmp_path)
        assert len(again.specs) == 10
        assert again.allocations == ALLOCATIONS

    trio.run(main)


def test_cancelled_write_is_not_forgotten(tmp_path):
    """Memory and disk agree also when the caller gives up during a write."""

    async def main():
        store = await opened(tmp_path)
        with trio.move_on_after(0):
            await store.put_spec(WEB)
        assert store.specs == (await opened(tmp_path)).specs

    trio.run(main)


def test_runs_alone(tmp_path):
    """As a registry it starts once its file is read, and has nothing to announce or watch."""

    async def main():
        store = LocalStore(tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_registry, store)
            store.watch(Interests(services=frozenset({"web"})))
            assert store.facts.machines == store.facts.endpoints == ()
            nursery.cancel_scope.cancel()

    trio.run(main)
