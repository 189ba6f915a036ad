"""What an image needs from its host, and what a machine without Docker is: each finding names the option to add."""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import trio

from appliance.check import kernel as surroundings
from appliance.config.options import Config, Consul
from appliance.drivers.nft.client import Nft
from appliance.errors import RetryError
from appliance.image import RUN_OPTIONS
from appliance.model.facts import DockerNetwork
from appliance.model.finding import Level

BRIDGE = DockerNetwork(
    name="bridge", driver="bridge", subnets=(IPv4Network("172.17.0.0/16"),), gateways=(IPv4Address("172.17.0.1"),)
)


@pytest.fixture
def image(monkeypatch, tmp_path):
    """Look as from inside of the image."""
    mark = tmp_path / "healthcheck.py"
    mark.touch()
    monkeypatch.setattr("appliance.image.IMAGE_MARK", mark)
    return Config(netns_dir="/proc/1/root/run/docker/netns", state_dir=str(tmp_path))


def test_gateway_says_what_adds_the_rest() -> None:
    """One line names the options, the Consul and how to name another; with the local registry there is nothing."""
    docker, registry = surroundings.gateway(Config(docker_socket="/nowhere"))
    assert docker.level is registry.level is Level.WARNING
    assert RUN_OPTIONS in docker.line
    assert "/nowhere" in docker.line
    assert "Consul" not in docker.line
    assert "MESHBOX_CONSUL" in registry.line
    consul = Consul(address="http://10.0.0.9:8500")
    (docker,) = surroundings.gateway(Config(docker_socket="/nowhere", registry="consul", consul=consul))
    assert RUN_OPTIONS in docker.remedy
    assert "every name in Consul at http://10.0.0.9:8500" in docker.words
    assert "for another Consul, -e MESHBOX_CONSUL=" in docker.remedy


def test_namespaces_out_of_reach(image, monkeypatch, tmp_path) -> None:
    """Without --pid=host containers' namespaces cannot be entered, nor where process 1 is closed to us."""
    config = replace(image, netns_dir=f"{tmp_path}/1/root/run/docker/netns")
    monkeypatch.setattr(surroundings, "INIT_ROOT", f"{tmp_path}/1/root")
    (tmp_path / "1").mkdir()
    (tmp_path / "1/root").symlink_to("/")
    assert [f.remedy for f in surroundings.mounts(config) if f.level is Level.FAILED] == [
        "run the container with --pid=host"
    ]
    assert surroundings.mounts(replace(image, netns_dir="/var/run/docker/netns"))[0].level is Level.WARNING
    (tmp_path / "1/root").unlink()
    (tmp_path / "1/root").symlink_to(tmp_path)
    (state,) = surroundings.mounts(config)
    assert state.remedy == f"add -v /var/lib/meshbox:{image.state_dir}"
    monkeypatch.setattr(Path, "samefile", closed)
    (found, _) = surroundings.mounts(config)
    assert found.level is Level.FAILED
    assert f"{tmp_path}/1/root: Permission denied" in found.words
    assert "CAP_SYS_PTRACE" in found.remedy


def closed(*_):
    """Process 1 of another's container."""
    raise PermissionError(errno.EACCES, "Permission denied")


def test_gateway_that_is_wanted(tmp_path) -> None:
    """Where gateway = "yes" says so, Docker is not missed, whether or not it is there."""
    (tmp_path / "docker.sock").touch()
    for socket in ("docker.sock", "none.sock"):
        docker, _ = surroundings.gateway(Config(gateway="yes", docker_socket=f"{tmp_path}/{socket}"))
        assert docker.level is Level.OK
        assert "there is no" not in docker.line


def test_elsewhere_mounts_do_not_matter(tmp_path) -> None:
    """Outside of the image a state directory need not be a mount."""
    assert surroundings.mounts(Config(state_dir=str(tmp_path))) == []


def test_network_of_its_own(image) -> None:
    """In the image Docker's bridge must be among our own addresses."""
    (found,) = surroundings.host_network([BRIDGE], [IPv4Address("172.17.0.5")])
    assert found.level is Level.FAILED
    assert "--net=host" in found.remedy
    assert surroundings.host_network([BRIDGE], [IPv4Address("172.17.0.1")]) == []


@pytest.mark.parametrize(
    ("host", "guests", "levels"),
    [
        ("0123456789ab", (), [Level.WARNING, Level.FAILED]),
        ("0123456789ab", ("10.0.0.7",), [Level.WARNING]),
        ("host", (), [Level.WARNING]),
    ],
    ids=["nobody is served", "a gateway for guests", "the host's network"],
)
def test_gateway_with_a_network_of_its_own(image, monkeypatch, tmp_path, host, guests, levels) -> None:
    """Where Docker named the container by its id nobody is served by a gateway, unless it has guests."""
    mounts = tmp_path / "mountinfo"
    folder = f"/docker/containers/0123456789ab{'0' * 52}"
    mounts.write_text(f"9 8 254:0 / / rw - overlay\n10 9 254:0 {folder}/hostname /etc/hostname rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(surroundings, "MOUNTS", mounts)
    monkeypatch.setattr(surroundings.socket, "gethostname", lambda: host)
    some = frozenset(map(IPv4Address, guests))
    found = surroundings.gateway(replace(image, registry="consul", docker_socket="/nowhere", guests=some))
    assert [one.level for one in found] == levels
    assert ("--net=host" in found[-1].remedy) == (Level.FAILED in levels)


def test_kernel_that_refuses_rules(monkeypatch) -> None:
    """What nft says is passed on, with what the kernel needs."""

    async def refuse(*_):
        raise RetryError("No such file or directory")

    monkeypatch.setattr(Nft, "dry_run", refuse)
    found = trio.run(partial(surroundings.rules, doors=True))
    assert found.level is Level.FAILED
    assert "No such file or directory" in found.words
    assert "nf_tables" in found.remedy


def test_kernel_without_doors(monkeypatch) -> None:
    """All goes on without, more slowly; who has set that already is told nothing."""

    async def refuse_doors(_self, _path, text):
        if "tproxy" in text:
            raise RetryError("No such file or directory")

    monkeypatch.setattr(Nft, "dry_run", refuse_doors)
    found = trio.run(partial(surroundings.rules, doors=True))
    assert found.level is Level.WARNING
    assert "nft_tproxy" in found.remedy
    assert "doors = false" in found.remedy
    assert trio.run(partial(surroundings.rules, doors=False)).level is Level.OK
