"""`meshbox cleanup` without Docker: what is removed, what stays on purpose, and what cannot be removed."""

from __future__ import annotations

import os

import pytest
import trio

from appliance import lock
from appliance.check import cleanup
from appliance.config.options import Config
from appliance.drivers.docker.types import Inspected, Listed
from appliance.drivers.host.resolvconf import ResolverSettings
from appliance.drivers.netns import identity
from appliance.errors import HostError, RetryError
from appliance.lock import only_one
from appliance.model.facts import RunState
from appliance.render.ruleset import BRIDGE_TABLE, REMOVE, REMOVE_BRIDGE, TABLE


class FakeNft:
    """Tables by path; a push of anything but the removal is an error. Only the host has one in the bridge family."""

    tables: dict[str, str]
    claims = True
    refuses = False

    async def list_table(self, path, table=TABLE):
        if table == BRIDGE_TABLE:
            assert path == identity.HOST
            return "table bridge meshbox" if FakeNft.claims else None
        return self.tables.get(path)

    async def push(self, path, text):
        if self.refuses:
            raise RetryError("nft: Operation not permitted")
        if text == REMOVE_BRIDGE:
            FakeNft.claims = False
            return
        assert text == REMOVE
        del self.tables[path]


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A host whose only namespaces are its own and two files that Docker keeps."""
    monkeypatch.setattr(lock, "SOCKET", f"\0meshbox-test-{os.getpid()}")
    monkeypatch.setattr(cleanup, "Nft", FakeNft)
    (tmp_path / "netns").mkdir()
    inodes = {identity.HOST: 1}
    for number, name in enumerate(("a", "b"), start=2):
        (tmp_path / "netns" / name).touch()
        inodes[str(tmp_path / "netns" / name)] = number
    monkeypatch.setattr(identity, "identify", inodes.get)
    monkeypatch.setattr(FakeNft, "claims", True)
    monkeypatch.setattr(FakeNft, "tables", dict.fromkeys(inodes, "table inet meshbox"), raising=False)
    said = []

    async def drop(path, vip_range):
        said.append((path, str(vip_range)))

    async def undo(_):
        return ["our line in resolv.conf"]

    monkeypatch.setattr(cleanup.routes, "drop_local_route", drop)
    monkeypatch.setattr(cleanup, "_remove_route", drop)
    monkeypatch.setattr(ResolverSettings, "revert", undo)
    return Config(
        docker_socket=str(tmp_path / "docker.sock"),
        netns_dir=str(tmp_path / "netns"),
        run_dir=str(tmp_path / "run"),
        state_dir=str(tmp_path / "state"),
    )


def clean(config, **options):
    """The report."""

    async def main():
        return await cleanup.clean(config, **options)

    return trio.run(main)


def test_everything_of_ours_goes(world, tmp_path) -> None:
    """Rules of the host and of containers, names, and run_dir; the state only when asked. Docker is told of."""
    (tmp_path / "state").mkdir()
    report = clean(world)
    assert FakeNft.tables == {}
    assert report.done == [
        "port claims of this host's bridges",
        "rules of this host",
        "rules in 2 containers",
        "our line in resolv.conf",
        str(tmp_path / "run"),
    ]
    (left,) = report.left
    assert left.startswith("Docker was not asked (no Docker Engine answers on ")
    assert left.endswith("docker network rm meshbox")
    assert report.failed == []
    assert (tmp_path / "state").exists()
    assert clean(world, state=True).done[-1] == str(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_nothing_of_ours_is_there(world, monkeypatch) -> None:
    """Where there are no rules none are removed, and a folder that is not there is no fault."""
    monkeypatch.setattr(FakeNft, "tables", {})
    report = clean(world, state=True)
    assert not [line for line in report.done if "rules" in line]
    assert report.failed == []


def test_what_cannot_be_removed_is_told(world, monkeypatch) -> None:
    """A refusal keeps nothing else from being removed."""
    monkeypatch.setattr(FakeNft, "refuses", True)
    report = clean(world)
    assert report.failed == ["nft: Operation not permitted"] * 3
    assert world.run_dir in report.done


def test_not_beside_an_appliance(world, tmp_path) -> None:
    """While an appliance holds the lock nothing is touched."""
    with only_one(tmp_path / "run"), pytest.raises(HostError, match="runs on this host"):
        clean(world)
    assert len(FakeNft.tables) == 3


def test_a_container_that_cannot_be_read_is_told() -> None:
    """The others are cleaned up; its rules may go by the files of namespaces."""

    class Engine:
        async def containers(self):
            return [Listed(id=name, docker_name=name, image="x", state=RunState.RUNNING) for name in ("odd", "b")]

        async def inspect(self, name):
            if name == "odd":
                raise RetryError("it is not what its API promises")
            return Inspected(listed=(await self.containers())[1], sandbox_key="/netns/b")

    report = cleanup.Report()
    assert trio.run(cleanup._sandboxes, Engine(), report) == ["/netns/b"]
    assert report.left == ["container odd cannot be read (it is not what its API promises)"]
