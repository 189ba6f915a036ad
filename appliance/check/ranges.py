"""The networks that the appliance takes for itself: virtual IPs and our Docker network. Nobody else may use them."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import orjson

from appliance.drivers.host.resolvconf import ROUTE_PROTOCOL
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from appliance.config.options import Config
    from appliance.model.facts import DockerNetwork

SMALLEST_VIP_RANGE = 256
"""Addresses. Virtual IPs are hashes of names: in a smaller range most names would collide."""


def vip_range(chosen: IPv4Network, networks: Sequence[DockerNetwork], on_host: Iterable[IPv4Network]) -> Finding:
    """Check that there are enough virtual IPs, and that nothing else uses them."""
    subject = "vip_range"
    if chosen.num_addresses < SMALLEST_VIP_RANGE:
        return failed(
            subject,
            f"vip_range {chosen} has only {chosen.num_addresses} addresses",
            f"choose one of at least {SMALLEST_VIP_RANGE}, such as 240.0.0.0/4",
        )
    for network in networks:
        for subnet in network.subnets:
            if isinstance(subnet, IPv4Network) and subnet.overlaps(chosen):
                return failed(
                    subject,
                    f'vip_range {chosen} overlaps {subnet} of the Docker network "{network.name}"',
                    "choose a range that nothing else uses, such as 240.0.0.0/4",
                )
    for route in on_host:
        if route.overlaps(chosen):
            return failed(
                subject,
                f"vip_range {chosen} overlaps this host's route to {route}",
                "choose a range that nothing else uses, such as 240.0.0.0/4",
            )
    return ok(subject, f"{chosen} is free")


def docker_subnet(config: Config, networks: Sequence[DockerNetwork], on_host: Iterable[IPv4Network]) -> list[Finding]:
    """Check whether the subnet that was chosen for our Docker network is free, until that network exists."""
    chosen = config.docker_subnet
    if chosen is None or any(network.name == config.docker_network for network in networks):
        return []
    others = [(f"vip_range {config.vip_range}", config.vip_range)]
    others += [
        (f'{subnet} of the Docker network "{network.name}"', subnet)
        for network in networks
        for subnet in network.subnets
        if isinstance(subnet, IPv4Network)
    ]
    others += [(f"this host's route to {route}", route) for route in on_host]
    for words, taken in others:
        if taken.overlaps(chosen):
            remedy = "choose one that nothing else uses, or none: Docker finds a free one"
            return [warning("docker_subnet", f"docker_subnet {chosen} overlaps {words}", remedy)]
    return [ok("docker_subnet", f"{chosen} is free")]


def routes() -> tuple[IPv4Network, ...]:
    """Return the host's IPv4 routes except the default one, and our own."""
    try:
        answer = subprocess.run(["ip", "-j", "-4", "route"], capture_output=True, check=False).stdout
    except FileNotFoundError:  # `system.programs` says so
        return ()
    return parse_routes(answer)


def parse_routes(answer: bytes) -> tuple[IPv4Network, ...]:
    """Return the routes that `ip -j -4 route` prints, except the default one and our own; no others are understood."""
    found = []
    try:
        listed = orjson.loads(answer or b"[]")
    except orjson.JSONDecodeError:
        return ()
    for route in listed if isinstance(listed, list) else ():
        with suppress(ValueError, TypeError, AttributeError):
            destination = route.get("dst", "default")
            if destination != "default" and route.get("protocol") != ROUTE_PROTOCOL:
                found.append(IPv4Network(destination))
    return tuple(found)
