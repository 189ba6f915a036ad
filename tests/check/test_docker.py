"""The Docker Engine: whether it answers, and where it keeps namespaces."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from appliance.check import docker
from appliance.config.options import Config
from appliance.drivers.docker.client import DockerVersion
from appliance.drivers.docker.http import DockerError, NotFoundError
from appliance.errors import RetryError
from appliance.model.facts import DockerNetwork, RunState
from appliance.model.finding import Level


def test_namespaces_elsewhere(tmp_path) -> None:
    """Where Docker keeps a running container's namespace in another folder, that is named."""
    config = Config(netns_dir=str(tmp_path))
    assert docker.namespaces(config, "") == []
    (found,) = docker.namespaces(config, "/srv/docker/netns/abc")
    assert found.level is Level.WARNING
    assert "in /srv/docker/netns, and netns_dir is" in found.words
    assert "set netns_dir" in found.remedy
    (tmp_path / "abc").touch()
    assert docker.namespaces(config, "/srv/docker/netns/abc") == []


class Engine:
    """Stands in for drivers.docker.client.Docker."""

    def __init__(self, *listed, gone=()):
        self._listed = listed
        self._gone = gone

    def __call__(self, path):
        self.path = path
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def version(self):
        return DockerVersion("20.10.24", "1.41")

    async def networks(self):
        return (DockerNetwork(name="bridge", driver="bridge"),)

    async def containers(self):
        return [SimpleNamespace(id=name, state=state) for name, state in self._listed]

    async def inspect(self, name):
        if name in self._gone:
            raise NotFoundError(f"no such container {name}", status=404)
        if name == "odd":
            raise RetryError("Docker's description of a container is not what its API promises")
        return SimpleNamespace(sandbox_key=f"/srv/netns/{name}")


@pytest.mark.parametrize(
    ("listed", "gone", "sandbox"),
    [
        ([], (), ""),
        ([("a", RunState.EXITED), ("b", RunState.RUNNING)], (), "/srv/netns/b"),
        ([("a", RunState.RUNNING), ("b", RunState.RUNNING)], ("a",), "/srv/netns/b"),
        ([("a", RunState.RUNNING)], ("a",), ""),
        ([("odd", RunState.RUNNING), ("b", RunState.RUNNING)], (), "/srv/netns/b"),
    ],
)
def test_engine_that_answers(monkeypatch, listed, gone, sandbox) -> None:
    """Its version is told; a container that has ended meanwhile does not matter."""
    monkeypatch.setattr(docker, "Docker", Engine(*listed, gone=gone))
    answer = trio.run(docker.ask, "/run/docker.sock")
    assert (answer.finding.level, answer.finding.words) == (Level.OK, "version 20.10.24 on /run/docker.sock")
    assert [network.name for network in answer.networks] == ["bridge"]
    assert answer.sandbox == sandbox


def test_no_engine(tmp_path) -> None:
    """Nobody on the socket: the cause stays with what is wrong, and the remedy is what to do."""
    answer = trio.run(docker.ask, str(tmp_path / "docker.sock"))
    assert (answer.networks, answer.sandbox) == ((), "")
    assert answer.finding.level is Level.FAILED
    assert answer.finding.words.startswith(f"no Docker Engine answers on {tmp_path}/docker.sock (")
    assert answer.finding.remedy.startswith("start it (")


def test_fault_without_a_remedy_of_its_own(monkeypatch) -> None:
    """An error that holds a colon is told as a whole, and a remedy is there all the same."""

    async def broken(_):
        raise DockerError("the connection to Docker on x broke during GET /version: end of file")

    monkeypatch.setattr(Engine, "version", broken)
    monkeypatch.setattr(docker, "Docker", Engine())
    finding = trio.run(docker.ask, "x").finding
    assert finding.words == "the connection to Docker on x broke during GET /version: end of file"
    assert finding.remedy == "start Docker, or name its socket with docker_socket"


def test_engine_that_hangs(monkeypatch) -> None:
    """It is given up after its time."""

    async def hang(_):
        await trio.sleep_forever()

    monkeypatch.setattr(Engine, "networks", hang)
    monkeypatch.setattr(docker, "Docker", Engine())

    async def main():
        return await docker.ask("/run/docker.sock")

    finding = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)).finding
    assert finding.level is Level.FAILED
    assert finding.words == "no answer on /run/docker.sock within 10 s"
    assert "log" in finding.remedy
