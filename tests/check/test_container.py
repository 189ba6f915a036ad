"""What an image needs from its host: each finding names the option to add."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from appliance.check import container
from appliance.config.options import Config
from appliance.model.facts import DockerNetwork
from appliance.model.finding import Level

BRIDGE = DockerNetwork(
    name="bridge", driver="bridge", subnets=(IPv4Network("172.17.0.0/16"),), gateways=(IPv4Address("172.17.0.1"),)
)


def test_namespaces_out_of_reach(image, monkeypatch, tmp_path) -> None:
    """Without --pid=host containers' namespaces cannot be entered, nor where process 1 is closed to us."""
    config = replace(image, netns_dir=f"{tmp_path}/1/root/run/docker/netns")
    monkeypatch.setattr(container, "INIT_ROOT", f"{tmp_path}/1/root")
    (tmp_path / "1").mkdir()
    (tmp_path / "1/root").symlink_to("/")
    assert [f.remedy for f in container.mounts(config) if f.level is Level.FAILED] == [
        "run the container with --pid=host"
    ]
    assert container.mounts(replace(image, netns_dir="/var/run/docker/netns"))[0].level is Level.WARNING
    (tmp_path / "1/root").unlink()
    (tmp_path / "1/root").symlink_to(tmp_path)
    (state,) = container.mounts(config)
    assert state.remedy == f"add -v /var/lib/meshbox:{image.state_dir}"
    monkeypatch.setattr(Path, "samefile", closed)
    (found, _) = container.mounts(config)
    assert found.level is Level.FAILED
    assert f"{tmp_path}/1/root: Permission denied" in found.words
    assert "CAP_SYS_PTRACE" in found.remedy


def closed(*_):
    """Process 1 of another's container."""
    raise PermissionError(errno.EACCES, "Permission denied")


def test_elsewhere_mounts_do_not_matter(tmp_path) -> None:
    """Outside the image a state directory need not be a mount."""
    assert container.mounts(Config(state_dir=str(tmp_path))) == []


def test_network_of_its_own(image) -> None:
    """In the image Docker's bridge must be among our own addresses."""
    (found,) = container.host_network([BRIDGE], [IPv4Address("172.17.0.5")])
    assert found.level is Level.FAILED
    assert "--net=host" in found.remedy
    assert container.host_network([BRIDGE], [IPv4Address("172.17.0.1")]) == []
