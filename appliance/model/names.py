"""Names, destinations, ports and allowances. Text is parsed once, at the edge."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from appliance.errors import InputError

MAX_LABEL = 63
"""Longest DNS label in octets (RFC 1035 §2.3.4)."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""What getaddrinfo and browsers read as a part of an IPv4 address: `10.0` is 10.0.0.0."""


class Protocol(StrEnum):
    """Transport protocol of a port."""

    TCP = "tcp"
    UDP = "udp"


class Name(NamedTuple):
    """`<container>.<service>`: what clients resolve."""

    service: str
    container: str

    def __str__(self) -> str:
        return f"{self.container}.{self.service}"

    @classmethod
    def parse(cls, text: str) -> Name:
        """Parse `redis.flask`. Raises InputError."""
        container, dot, service = text.partition(".")
        if not dot:
            raise InputError(f'"{text}" is not <container>.<service>; write for example "redis.flask"')
        return cls(container=parse_label(container, "container"), service=parse_service_name(service))


class Destination(NamedTuple):
    """Something that can be dialled: `redis.flask:8080/tcp`."""

    name: Name
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.name}:{self.port}/{self.protocol}"

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Parse `redis.flask:8080` (TCP) or `redis.flask:8080/udp`. Raises InputError."""
        allowance = Allowance.parse(text)
        if allowance.port is None:
            raise InputError(f'"{text}" names no port; write for example "{text}:8080"')
        return cls(name=allowance.name, port=allowance.port, protocol=allowance.protocol or Protocol.TCP)


class Port(NamedTuple):
    """A port that others may reach: `mesh` is what they dial, `container` where the program listens."""

    mesh: int
    container: int
    protocol: Protocol

    def __str__(self) -> str:
        ports = str(self.mesh) if self.mesh == self.container else f"{self.mesh}:{self.container}"
        return f"{ports}/{self.protocol}"

    @classmethod
    def parse(cls, value: str | int) -> Port:
        """Parse `8080`, `"8080/udp"`, `"8080:6379"` or `"8080:6379/udp"`. Raises InputError."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(f'port {value!r} is neither a number nor text; write 8080 or "8080:6379/udp"')
        ports, slash, protocol = str(value).partition("/")
        mesh, colon, inner = ports.partition(":")
        return cls(
            mesh=parse_port_number(mesh, value),
            container=parse_port_number(inner if colon else mesh, value),
            protocol=_parse_protocol(protocol, value) if slash else Protocol.TCP,
        )


class Allowance(NamedTuple):
    """One entry of `connect_to`. Without a port: every port; without a protocol: every protocol on it."""

    name: Name
    port: int | None
    protocol: Protocol | None

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        protocol = "" if self.protocol is None else f"/{self.protocol}"
        return f"{self.name}{port}{protocol}"

    @classmethod
    def parse(cls, text: str) -> Allowance:
        """Parse `apple.orange`, `apple.orange:8080` or `apple.orange:8080/udp`. Raises InputError."""
        if not isinstance(text, str):
            raise InputError(f'{text!r} is not text; write for example "apple.orange:8080"')
        rest, slash, protocol = text.partition("/")
        name, colon, port = rest.partition(":")
        if slash and not colon:
            raise InputError(f'"{text}" has a protocol but no port; write for example "{name}:8080/{protocol}"')
        return cls(
            name=Name.parse(name),
            port=parse_port_number(port, text) if colon else None,
            protocol=_parse_protocol(protocol, text) if slash else None,
        )

    def covers(self, destination: Destination) -> bool:
        """Whether this entry allows the destination."""
        return (
            self.name == destination.name
            and self.port in (None, destination.port)
            and self.protocol in (None, destination.protocol)
        )


def parse_label(text: str, what: str) -> str:
    """Return `text` if it is an RFC 1123 §2.1 host label in lower case. Raises InputError."""
    if not isinstance(text, str):
        raise InputError(f"{what} name {text!r} is not text")
    if len(text) > MAX_LABEL:
        raise InputError(f'{what} name "{text}" has {len(text)} characters; {MAX_LABEL} is the most (RFC 1035)')
    if not _LABEL.fullmatch(text):
        raise InputError(f'{what} name "{text}" is not a host label (RFC 1123): use a-z, 0-9 and "-", not at the ends')
    return text


def parse_service_name(text: str) -> str:
    """Return `text` if it is a label that can be a top-level domain. Raises InputError."""
    if _NUMBER.fullmatch(parse_label(text, "service")):
        raise InputError(f'service name "{text}" is a number: programs take names that end in one for IPv4 addresses')
    return text


def parse_port_number(text: str, whole: str | int) -> int:
    """Parse one port number, 1 to 65535; `whole` is what the user wrote. Raises InputError."""
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 65535:
        raise InputError(f'"{text}" in port "{whole}" is not a port number from 1 to 65535')
    return int(text)


def _parse_protocol(text: str, whole: str | int) -> Protocol:
    try:
        return Protocol(text)
    except ValueError:
        raise InputError(f'"{text}" in "{whole}" is not a protocol; write tcp or udp') from None
