"""A machine without Docker: each finding names what adds the rest."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from appliance.check import container, gateway
from appliance.config.options import Config, Consul
from appliance.image import RUN_OPTIONS
from appliance.model.finding import Level


def test_gateway_says_what_adds_the_rest() -> None:
    """One line names the options, the Consul and how to name another; with the local registry there is nothing."""
    docker, registry = gateway.gateway(Config(docker_socket="/nowhere"))
    assert docker.level is registry.level is Level.WARNING
    assert RUN_OPTIONS in docker.remedy
    assert "/nowhere" in docker.words
    assert "Consul" not in docker.words + docker.remedy
    assert "MESHBOX_CONSUL" in registry.remedy
    consul = Consul(address="http://10.0.0.9:8500")
    (docker,) = gateway.gateway(Config(docker_socket="/nowhere", registry="consul", consul=consul))
    assert RUN_OPTIONS in docker.remedy
    assert "every name in Consul at http://10.0.0.9:8500" in docker.words
    assert "for another Consul, -e MESHBOX_CONSUL=" in docker.remedy


def test_gateway_that_is_wanted(tmp_path) -> None:
    """Where gateway = "yes" says so, Docker is not missed, whether or not it is there."""
    (tmp_path / "docker.sock").touch()
    for socket in ("docker.sock", "none.sock"):
        docker, _ = gateway.gateway(Config(gateway="yes", docker_socket=f"{tmp_path}/{socket}"))
        assert docker.level is Level.OK
        assert "there is no" not in docker.words


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
    monkeypatch.setattr(container, "MOUNTS", mounts)
    monkeypatch.setattr(container.socket, "gethostname", lambda: host)
    some = frozenset(map(IPv4Address, guests))
    found = gateway.gateway(replace(image, registry="consul", docker_socket="/nowhere", guests=some))
    assert [one.level for one in found] == levels
    assert ("--net=host" in found[-1].remedy) == (Level.FAILED in levels)
