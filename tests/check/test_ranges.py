"""Networks that something else uses are named."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from foreign import encode, spoilt
from hypothesis import example, given

from appliance.check import ranges
from appliance.config.options import Config
from appliance.model.facts import DockerNetwork
from appliance.model.finding import Level

RANGE = IPv4Network("240.0.0.0/4")


def test_vip_range_that_is_too_small() -> None:
    """Names need room."""
    assert "only 16 addresses" in ranges.vip_range(IPv4Network("240.0.0.0/28"), (), ()).words


def test_vip_range_that_is_somebody_elses() -> None:
    """A Docker network or a route of the host in the range is named."""
    network = DockerNetwork(name="web", driver="bridge", subnets=(IPv4Network("240.1.0.0/16"),))
    assert 'overlaps 240.1.0.0/16 of the Docker network "web"' in ranges.vip_range(RANGE, (network,), ()).words
    assert "route to 10.0.0.0/8" in ranges.vip_range(IPv4Network("10.8.0.0/16"), (), [IPv4Network("10.0.0.0/8")]).words
    assert ranges.vip_range(RANGE, (), [IPv4Network("10.0.0.0/8")]).level is Level.OK


def test_docker_subnet() -> None:
    """One that is somebody else's is a warning, since deploys will fail; a network of ours that is there is not."""
    config = Config(docker_subnet=IPv4Network("10.9.0.0/24"))
    lan = DockerNetwork(name="lan", driver="bridge", subnets=(IPv4Network("10.9.0.0/16"),))
    own = replace(lan, name="meshbox")
    for networks, on_host, words in (
        ((lan,), (), '10.9.0.0/16 of the Docker network "lan"'),
        ((), (IPv4Network("10.0.0.0/8"),), "this host's route to 10.0.0.0/8"),
    ):
        (found,) = ranges.docker_subnet(config, networks, on_host)
        assert found.level is Level.WARNING
        assert words in found.words
    (found,) = ranges.docker_subnet(replace(config, vip_range=IPv4Network("10.0.0.0/8")), (), ())
    assert "vip_range 10.0.0.0/8" in found.words
    (found,) = ranges.docker_subnet(config, (), (IPv4Network("192.168.0.0/16"),))
    assert found.level is Level.OK
    assert ranges.docker_subnet(config, (own,), (IPv4Network("10.9.0.0/16"),)) == []
    assert ranges.docker_subnet(Config(), (lan,), ()) == []


ROUTES = [{"dst": "default", "gateway": "10.0.0.1"}, {"dst": "192.0.2.0/24", "dev": "a"}, {"dst": "10.0.0.7"}]


@given(spoilt(ROUTES))
@example([*ROUTES, {"dst": "somewhere"}])
@example([*ROUTES, 7])
@example(7)
def test_any_routes(answer) -> None:
    """A route that cannot be read ends no check, and the others count."""
    found = ranges.parse_routes(encode(answer))
    assert len(found) <= 5
    assert {"192.0.2.0/24", "10.0.0.7/32"} == set(map(str, ranges.parse_routes(encode([{"dst": "x"}, *ROUTES]))))
