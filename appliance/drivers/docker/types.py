"""What Docker says, parsed once into values; nothing here talks to it.

Field names and meanings are those of Docker Engine API 1.41 (`ContainerInspect`, `ContainerList`, `NetworkList`,
`SystemEvents`). Only fields that later versions still have are read.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_network
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import msgspec

from appliance.errors import RetryError, cause
from appliance.model.facts import DockerNetwork, RunState
from appliance.model.mac import parse_mac
from appliance.model.names import Protocol, parse_port_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

MANAGED = "meshbox.managed"
"""Label of networks that meshbox made."""
ICC = "com.docker.network.bridge.enable_icc"
"""Option of a bridge: whether its containers reach each other."""
BRIDGE_NAME = "com.docker.network.bridge.name"
"""Option of a bridge: what the host's interface is called."""
MOST_NAMES = 64
LONGEST_STOP = 10**6
"""Seconds; more between SIGTERM and SIGKILL counts as this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An entry of one of Docker's lists that cannot be read, and is passed over."""

    id: str
    """A container's id or a network's name; empty where not even that can be read."""
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A container as the list shows it. Listing never blocks, but knows no address while Docker starts a container."""

    id: str
    docker_name: str
    image: str
    state: RunState
    labels: Mapping[str, str] = field(default_factory=dict)
    network_mode: str = ""
    networks: tuple[str, ...] = ()
    """Names of the networks that it is on, or will be on once it runs."""
    image_id: str = ""
    """That of the image from which it was made; `image` may be another one's name by now. Events do not say it."""
    aliases: frozenset[str] = frozenset()
    """What else it is called on its networks; known of inspected ones only."""
    from_image: frozenset[str] = frozenset()
    """Keys of `labels` that are the image's (images.py): they do not count."""
    doubt: str = ""
    """Why nobody can say which labels are the image's; then none counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkMembers:
    """A network and its containers. Docker knows this before a starting container has its namespace."""

    network: DockerNetwork
    joined: Mapping[str, Joined]
    """By container id, and by other names where the endpoint is no container's."""
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A container's endpoint on one Docker network; no addresses while it does not run."""

    network: str
    address: IPv4Address | None = None
    gateway: IPv4Address | None = None
    address6: IPv6Address | None = None
    gateway6: IPv6Address | None = None
    mac: int | None = None
    names: tuple[str, ...] = ()
    """MOST_NAMES of what Docker's own DNS calls it there, its name in Docker first. Inspect alone says them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A container as inspect shows it. Inspect blocks while Docker starts that container."""

    listed: Listed
    runtime: str = ""
    sandbox_key: str = ""
    """Path of its network namespace as Docker sees it; empty when it has none of its own."""
    joined: tuple[Joined, ...] = ()
    published: frozenset[tuple[Protocol, int]] = frozenset()
    own_rules: bool = False
    """Whether it may make rules in its own network namespace."""
    healthy: bool | None = None
    exit_code: int | None = None
    started_at: float = 0.0
    """Seconds since the epoch; 0 when it never ran."""
    stop_timeout: float = 10.0
    """Seconds between SIGTERM and SIGKILL when it is stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a container or a network."""

    kind: str
    """`container` or `network`."""
    action: str
    id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    """A container's labels beside Docker's own `name`, `image`, `exitCode`; a network event's `container`."""
    time: float = 0.0
    """Seconds since the epoch."""

    def listed(self) -> Listed:
        """Return what a container's `create` or `start` event says about it."""
        return Listed(
            id=self.id,
            docker_name=self.attributes.get("name", ""),
            image=self.attributes.get("image", ""),
            state=RunState.CREATED,
            labels=self.attributes,
        )


class _Health(msgspec.Struct, rename="pascal"):
    status: str = ""


class _State(msgspec.Struct, rename="pascal"):
    status: RunState
    exit_code: int = 0
    started_at: str = ""
    health: _Health | None = None


class _Config(msgspec.Struct, rename="pascal"):
    image: str = ""
    labels: dict[str, str] | None = None
    stop_timeout: int | None = None


class _HostConfig(msgspec.Struct, rename="pascal"):
    network_mode: str = ""
    runtime: str = ""
    privileged: bool = False
    cap_add: list[str] | None = None


class _Endpoint(msgspec.Struct, rename="pascal"):
    gateway: str = ""
    ip_address: str = msgspec.field(default="", name="IPAddress")
    ipv6_gateway: str = msgspec.field(default="", name="IPv6Gateway")
    global_ipv6_address: str = msgspec.field(default="", name="GlobalIPv6Address")
    mac_address: str = ""
    aliases: list[str] | None = None
    dns_names: list[str] | None = msgspec.field(default=None, name="DNSNames")


class _NetworkSettings(msgspec.Struct, rename="pascal"):
    sandbox_key: str = ""
    ports: dict[str, list[dict[str, str]] | None] | None = None
    networks: dict[str, _Endpoint | None] | None = None


class _Container(msgspec.Struct, rename="pascal"):
    id: str
    name: str
    state: _State
    config: _Config
    host_config: _HostConfig
    network_settings: _NetworkSettings
    image: str = ""


class _ListNetworks(msgspec.Struct, rename="pascal"):
    networks: dict[str, msgspec.Raw] | None = None


class _ListEntry(msgspec.Struct, rename="pascal"):
    id: str
    state: RunState
    image_id: str = msgspec.field(default="", name="ImageID")
    network_settings: _ListNetworks | None = None
    names: list[str] | None = None
    image: str = ""
    labels: dict[str, str] | None = None
    host_config: _HostConfig | None = None


class _IpamConfig(msgspec.Struct, rename="pascal"):
    subnet: str = ""
    gateway: str = ""


class _Ipam(msgspec.Struct, rename="pascal"):
    config: list[_IpamConfig] | None = None


class _Member(msgspec.Struct, rename="pascal"):
    ipv4_address: str = msgspec.field(default="", name="IPv4Address")
    ipv6_address: str = msgspec.field(default="", name="IPv6Address")
    mac_address: str = ""


class _Network(msgspec.Struct, rename="pascal"):
    name: str
    id: str = ""
    driver: str = ""
    internal: bool = False
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None
    containers: dict[str, _Member] | None = None
    ipam: _Ipam | None = msgspec.field(default=None, name="IPAM")


class _Actor(msgspec.Struct, rename="pascal"):
    id: str = msgspec.field(default="", name="ID")
    attributes: dict[str, str] | None = None


class _Event(msgspec.Struct, rename="pascal"):
    type: str
    action: str
    actor: _Actor
    time: int = msgspec.field(default=0, name="time")
    time_nano: int = msgspec.field(default=0, name="timeNano")


class _Called(msgspec.Struct, rename="pascal"):
    id: str = ""
    name: str = ""


_NET_ADMIN = frozenset({"ALL", "CAP_NET_ADMIN", "NET_ADMIN"})
"""Docker's names of the capability to change rules, and of all capabilities."""


def decode(text: bytes, kind: type[T], what: str) -> T:
    """Decode JSON that Docker sent as `what`. Raises RetryError."""
    with _promised(what):
        return msgspec.json.decode(text, type=kind)


@contextmanager
def _promised(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with what Docker sent into a RetryError: it concerns this one answer only."""
    try:
        yield
    except RetryError:
        raise
    except Exception as error:
        raise RetryError(f"Docker's {what} is not what its API promises: {cause(error)}") from error


def _each(
    text: bytes, what: str, parse: Callable[[bytes], T], identify: Callable[[bytes], str]
) -> tuple[tuple[T, ...], tuple[Unreadable, ...]]:
    """Parse each entry of a list by itself. Raises RetryError when it is no list."""
    found: list[T] = []
    unreadable: list[Unreadable] = []
    for entry in decode(text, list[msgspec.Raw], what):
        try:
            found.append(parse(bytes(entry)))
        except RetryError as error:
            try:
                known = identify(bytes(entry))
            except RetryError:
                known = ""
            unreadable.append(Unreadable(id=known, cause=str(error)))
    return tuple(found), tuple(unreadable)


def parse_list(text: bytes) -> tuple[tuple[Listed, ...], tuple[Unreadable, ...]]:
    """Parse `GET /containers/json` entry by entry. Raises RetryError when it is no list."""
    what = "list of containers"
    return _each(text, what, _listed, lambda entry: decode(entry, _Called, what).id)


def _listed(text: bytes) -> Listed:
    entry = decode(text, _ListEntry, "list of containers")
    return Listed(
        id=entry.id,
        docker_name=(entry.names or [""])[0].lstrip("/"),
        image=entry.image,
        state=entry.state,
        labels=entry.labels or {},
        network_mode=entry.host_config.network_mode if entry.host_config else "",
        networks=tuple((entry.network_settings.networks if entry.network_settings else None) or ()),
        image_id=entry.image_id,
    )


def parse_inspect(text: bytes) -> Inspected:
    """Parse `GET /containers/{id}/json`. Raises RetryError."""
    what = "description of a container"
    container = decode(text, _Container, what)
    with _promised(what):
        return _inspected(container)


def _inspected(container: _Container) -> Inspected:
    state, settings = container.state, container.network_settings
    timeout, docker_name = container.config.stop_timeout, container.name.lstrip("/")
    return Inspected(
        listed=Listed(
            id=container.id,
            docker_name=docker_name,
            image=container.config.image,
            state=state.status,
            labels=container.config.labels or {},
            network_mode=container.host_config.network_mode,
            networks=tuple(settings.networks or ()),
            image_id=container.image,
            aliases=frozenset(alias for e in (settings.networks or {}).values() if e for alias in e.aliases or ()),
        ),
        runtime=container.host_config.runtime,
        sandbox_key=settings.sandbox_key,
        joined=tuple(_joined(n, one, docker_name) for n, one in (settings.networks or {}).items() if one),
        published=_published(settings.ports or {}),
        own_rules=container.host_config.privileged or not _NET_ADMIN.isdisjoint(container.host_config.cap_add or ()),
        healthy=_healthy(state.health),
        exit_code=state.exit_code if state.status in {RunState.EXITED, RunState.DEAD, RunState.RESTARTING} else None,
        started_at=_seconds(state.started_at),
        stop_timeout=10.0 if timeout is None else float(min(timeout, LONGEST_STOP)),
    )


def parse_networks(text: bytes) -> tuple[tuple[DockerNetwork, ...], tuple[Unreadable, ...]]:
    """Parse `GET /networks` entry by entry. Raises RetryError when it is no list."""
    what = "list of networks"
    return _each(text, what, parse_network, lambda entry: decode(entry, _Called, what).name)


def parse_network(text: bytes) -> DockerNetwork:
    """Parse `GET /networks/{id}`. Raises RetryError."""
    what = "description of a network"
    network = decode(text, _Network, what)
    with _promised(what):
        return _network(network)


def parse_members(text: bytes) -> NetworkMembers:
    """Parse `GET /networks/{id}`, its containers one by one. Raises RetryError."""
    what = "description of a network"
    network = decode(text, _Network, what)
    with _promised(what):
        known = _network(network)
    joined: dict[str, Joined] = {}
    unreadable: list[Unreadable] = []
    for container_id, member in (network.containers or {}).items():
        try:
            with _promised("member of a network"):
                joined[container_id] = _member(network.name, member)
        except RetryError as error:
            unreadable.append(Unreadable(id=container_id, cause=str(error)))
    return NetworkMembers(network=known, joined=joined, unreadable=tuple(unreadable))


def parse_event(text: bytes) -> Event:
    """Parse one line of `GET /events`. Raises RetryError."""
    event = decode(text, _Event, "event")
    with _promised("event"):
        return Event(
            kind=event.type,
            action=event.action,
            id=event.actor.id,
            attributes=event.actor.attributes or {},
            time=event.time_nano / 1e9 if event.time_nano else float(event.time),
        )


def _network(network: _Network) -> DockerNetwork:
    configs = (network.ipam.config if network.ipam else None) or []
    return DockerNetwork(
        name=network.name,
        driver=network.driver,
        internal=network.internal,
        subnets=tuple(ip_network(c.subnet, strict=False) for c in configs if c.subnet),
        # Docker writes some gateways with the prefix length of the network behind them
        gateways=tuple(ip_address(c.gateway.partition("/")[0]) for c in configs if c.gateway),
        ours=MANAGED in (network.labels or {}),
        apart=(network.options or {}).get(ICC, "").lower() in {"false", "f", "0"},
        bridge=_bridge(network),
    )


def _bridge(network: _Network) -> str:
    """Return the interface of a bridge network, which Docker names after the network's id unless told otherwise."""
    if network.driver != "bridge":
        return ""
    return (network.options or {}).get(BRIDGE_NAME) or (f"br-{network.id[:12]}" if network.id else "")


def _member(network: str, member: _Member) -> Joined:
    return Joined(
        network=network,
        address=IPv4Interface(member.ipv4_address).ip if member.ipv4_address else None,
        address6=IPv6Interface(member.ipv6_address).ip if member.ipv6_address else None,
        mac=parse_mac(member.mac_address) if member.mac_address else None,
    )


def _joined(network: str, endpoint: _Endpoint, docker_name: str) -> Joined:
    names = dict.fromkeys((docker_name, *(endpoint.aliases or ()), *(endpoint.dns_names or ())))
    return Joined(
        network=network,
        address=IPv4Address(endpoint.ip_address) if endpoint.ip_address else None,
        gateway=IPv4Address(endpoint.gateway) if endpoint.gateway else None,
        address6=IPv6Address(endpoint.global_ipv6_address) if endpoint.global_ipv6_address else None,
        gateway6=IPv6Address(endpoint.ipv6_gateway) if endpoint.ipv6_gateway else None,
        mac=parse_mac(endpoint.mac_address) if endpoint.mac_address else None,
        names=tuple(islice(names, MOST_NAMES)),
    )


def _published(ports: Mapping[str, list[dict[str, str]] | None]) -> frozenset[tuple[Protocol, int]]:
    """`{"80/tcp": [{"HostPort": …}], "81/tcp": null}`: only the first is published."""
    found = set()
    for port, bindings in ports.items():
        number, _, protocol = port.partition("/")
        if bindings and protocol in set(Protocol):
            found.add((Protocol(protocol), parse_port_number(number, port)))
    return frozenset(found)


def _healthy(health: _Health | None) -> bool | None:
    if health is None or health.status in {"", "none"}:
        return None
    return health.status == "healthy"


def _seconds(text: str) -> float:
    """RFC 3339 → seconds since the epoch; Docker writes the year 1 for never."""
    if not text:
        return 0.0
    return max(0.0, datetime.fromisoformat(text).timestamp())
