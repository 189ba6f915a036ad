"""Is this host fit: each finding says what is wrong and how to mend it."""

from __future__ import annotations

import errno
import resource
import socket
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from appliance.check import host as fitness
from appliance.config.options import Config
from appliance.model.facts import DockerNetwork
from appliance.model.finding import Level

RANGE = IPv4Network("240.0.0.0/4")


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ("nftables v1.0.6 (Lester Gooch #5)\n", Level.OK),
        ("nftables v0.9.6 (Capital Idea)", Level.OK),
        ("nftables v0.9.0 (Fearless Fosdick)", Level.FAILED),
        ("", Level.FAILED),
    ],
)
def test_nft_version(answer, level) -> None:
    """Too old an nft, and one that cannot be read, keep the appliance from running."""
    found = fitness.nft_version(answer)
    assert found.level is level
    assert level is Level.OK or "install nftables 0.9.6" in found.remedy


def test_vip_range_that_is_too_small() -> None:
    """Names need room."""
    assert "only 16 addresses" in fitness.vip_range(IPv4Network("240.0.0.0/28"), (), ()).line


def test_vip_range_that_is_somebody_elses() -> None:
    """A Docker network or a route of the host in the range is named."""
    network = DockerNetwork(name="web", driver="bridge", subnets=(IPv4Network("240.1.0.0/16"),))
    assert 'overlaps 240.1.0.0/16 of the Docker network "web"' in fitness.vip_range(RANGE, (network,), ()).line
    assert "route to 10.0.0.0/8" in fitness.vip_range(IPv4Network("10.8.0.0/16"), (), [IPv4Network("10.0.0.0/8")]).line
    assert fitness.vip_range(RANGE, (), [IPv4Network("10.0.0.0/8")]).level is Level.OK


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_dns_port_that_is_taken(kind) -> None:
    """A program that has the port on the gateway, or on all addresses, is noticed."""
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("0.0.0.0", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        for gateways in ([IPv4Address("127.0.0.1")], []):
            found = fitness.dns_port(port, gateways)
            assert found.level is Level.FAILED
            assert "set dns_port" in found.remedy
    assert fitness.dns_port(port, [IPv4Address("127.0.0.1")]).level is Level.OK


def test_proxy_ports_in_use() -> None:
    """Some taken ports are passed over with a warning; when none is left it cannot run."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = fitness.listening_ports()
    assert port in taken
    assert fitness.proxy_ports(port, port, taken=taken).level is Level.FAILED
    assert fitness.proxy_ports(port, port + 1, taken=frozenset({port})).level is Level.WARNING
    assert fitness.proxy_ports(1, 2, taken=frozenset({3})).level is Level.OK


def test_resolvers() -> None:
    """No resolver, or one that containers cannot be sent to, is a warning."""
    assert fitness.resolvers(()).level is Level.WARNING
    assert fitness.resolvers([("127.0.0.53", 53)]).level is Level.WARNING
    assert fitness.resolvers([("10.0.0.1", 53), ("127.0.0.1", 53)]).level is Level.OK


def test_missing_programs_are_named_with_their_package(monkeypatch) -> None:
    """Without nft, nsenter and ip it says what to install, and looks at the rest all the same."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert [finding.remedy for finding in fitness.programs()] == [
        "apt-get install nftables",
        "apt-get install util-linux",
        "apt-get install iproute2",
    ]
    assert fitness.routes() == ()


def test_rights_that_are_missing(monkeypatch, tmp_path) -> None:
    """In a container the option is named, elsewhere what to give; a port that one may not bind is not taken."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(fitness, "CAP_SYS_ADMIN", 63)
    mark = tmp_path / "mark"
    monkeypatch.setattr("appliance.image.IMAGE_MARK", mark)
    monkeypatch.setattr("appliance.image.CONTAINER_MARK", mark)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    for look in (fitness.privileges, lambda: fitness.dns_port(53, [IPv4Address("127.0.0.1")])):
        mark.unlink(missing_ok=True)
        assert look().level is Level.FAILED
        assert "CAP_" in look().words
        assert "missing" in look().words
        assert "CapabilityBoundingSet" in look().remedy
        mark.touch()
        assert look().remedy == "run the container with --privileged"


def test_dns_listen() -> None:
    """An address that this host does not have is a warning, since it may come later."""
    assert fitness.dns_listen([IPv4Address("127.66.0.53")]) == []
    (found,) = fitness.dns_listen([IPv4Address("192.0.2.1"), IPv4Address("127.66.0.53")])
    assert found.level is Level.WARNING
    assert "192.0.2.1 of dns_listen is no address of this host" in found.words
    assert "ip -4 address" in found.remedy


def test_open_files(monkeypatch) -> None:
    """A low limit is a warning that says where to raise it; none is well."""
    for hard, level in ((1024, Level.WARNING), (fitness.FEW_FILES, Level.OK), (resource.RLIM_INFINITY, Level.OK)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (0, hard))
        assert fitness.open_files().level is level
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 1024))
    assert fitness.open_files().words == "limit is 1024"
    assert "LimitNOFILE" in fitness.open_files().remedy
    assert fitness.open_files(20000).words == "limit is 20000", "that of the appliance that runs"


@pytest.mark.parametrize(
    ("count", "most", "wanted"),
    [
        (12, 262_144, None),
        (49_151, 65_536, None),
        (49_152, 65_536, 262_144),
        (200_000, 262_144, 524_288),
        (12, 65_535, 262_144),
    ],
)
def test_connection_tracking(tmp_path, count, most, wanted) -> None:
    """Too few entries, and three quarters of them in use, are a warning with the line that mends it."""
    (tmp_path / "nf_conntrack_count").write_text(f"{count}\n")
    (tmp_path / "nf_conntrack_max").write_text(f"{most}\n")
    (found,) = fitness.tracking(tmp_path)
    assert found.words == f"{count} connections are tracked, of {most} at most"
    assert found.level is (Level.WARNING if wanted else Level.OK)
    assert not wanted or f"sysctl -w net.netfilter.nf_conntrack_max={wanted}," in found.remedy


def test_a_kernel_that_tracks_no_connections_or_any_number(tmp_path) -> None:
    """Of the one there is nothing to say; 0 is no limit."""
    assert fitness.tracking(tmp_path) == []
    for name in ("count", "max"):
        (tmp_path / f"nf_conntrack_{name}").write_text("0\n")
    (found,) = fitness.tracking(tmp_path)
    assert (found.level, found.words) == (Level.OK, "any number of connections may be tracked")


def test_docker_subnet() -> None:
    """One that is somebody else's is a warning, since deploys will fail; a network of ours that is there is not."""
    config = Config(docker_subnet=IPv4Network("10.9.0.0/24"))
    lan = DockerNetwork(name="lan", driver="bridge", subnets=(IPv4Network("10.9.0.0/16"),))
    own = replace(lan, name="meshbox")
    for networks, on_host, words in (
        ((lan,), (), '10.9.0.0/16 of the Docker network "lan"'),
        ((), (IPv4Network("10.0.0.0/8"),), "this host's route to 10.0.0.0/8"),
    ):
        (found,) = fitness.docker_subnet(config, networks, on_host)
        assert found.level is Level.WARNING
        assert words in found.words
    (found,) = fitness.docker_subnet(replace(config, vip_range=IPv4Network("10.0.0.0/8")), (), ())
    assert "vip_range 10.0.0.0/8" in found.words
    (found,) = fitness.docker_subnet(config, (), (IPv4Network("192.168.0.0/16"),))
    assert found.level is Level.OK
    assert fitness.docker_subnet(config, (own,), (IPv4Network("10.9.0.0/16"),)) == []
    assert fitness.docker_subnet(Config(), (lan,), ()) == []


def test_clock(monkeypatch) -> None:
    """A clock that was never set is a warning."""
    assert fitness.clock().level is Level.OK
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert fitness.clock().level is Level.WARNING
    assert "timedatectl set-ntp true" in fitness.clock().remedy


def test_not_root(monkeypatch) -> None:
    """An ordinary user is told to use sudo."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "sudo" in fitness.privileges().remedy


def test_host_names(tmp_path) -> None:
    """Where resolv.conf is to name our server, it has to listen on port 53; without a file it says what to write."""
    config = Config(resolv_conf=str(tmp_path / "resolv.conf"))
    assert fitness.host_names(config).level is Level.OK
    other = fitness.host_names(replace(config, dns_port=5353))
    assert other.level is Level.FAILED
    assert "set dns_port to 53" in other.remedy
    none = fitness.host_names(replace(config, resolv_conf=""))
    assert none.level is Level.WARNING
    assert "name 127.66.0.53 first" in none.remedy
