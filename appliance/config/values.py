"""Single values of the configuration, from TOML's types or the text of a variable or flag.

Each raises `InputError` with a few words that say what was expected; `config.options` adds where the value stands.
A docstring that begins with "Accept" is what the reference page says of the values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from appliance.errors import InputError, did_you_mean
from appliance.model.names import MAX_LABEL, Allowance, Protocol, parse_label
from appliance.model.numbers import check_number, parse_decimal, parse_number
from appliance.model.visitors import ConnectTo
from appliance.spec.capabilities import parse_capabilities
from appliance.spec.fields import MAX_SECONDS, parse_seconds, shown
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ADDRESSES = 4096
"""Addresses that a list may have, networks spelled out: each is one in the sets of rules and listeners."""

CONSUL_WORDS = ("gossip", "rpc", "grpc", "http", "dns")
"""What Consul's agents listen for, in words of the option `consul.refuse`."""

_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def text(value: Any) -> str:
    """Accept any text, also an empty one."""
    if not isinstance(value, str) or not value.isprintable():
        raise InputError(f"{shown(value)} is not text")
    return value


def node(value: Any) -> str:
    """Accept a name of at most 63 letters, digits, "-", "_" and ".", which Consul accepts too."""
    if not isinstance(value, str) or len(value) > MAX_LABEL or not _NODE.fullmatch(value):
        raise InputError(f'{shown(value)} is not a machine name; use letters, digits, "-", "_" and "."')
    return value


def node_from(host_name: str) -> str:
    """Make a machine's name of a host name, whatever that is."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", host_name)[:MAX_LABEL].strip("-._") or "localhost"


def path(value: Any) -> str:
    """Accept an absolute path."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise InputError(f"{shown(value)} is not an absolute path")
    return value


def optional_path(value: Any) -> str:
    """Accept an absolute path, or nothing."""
    return "" if value == "" else path(value)


def integer(low: int, high: int) -> Callable[[Any], int]:
    """Return what accepts a whole number within the bounds."""

    def parse(value: Any) -> int:
        return parse_number(value, low, high) if isinstance(value, str) else check_number(value, low, high)

    parse.__doc__ = f"Accept a whole number from {low} to {high}."
    return parse


def seconds(value: Any) -> float:
    """Accept seconds as a number, or text like "1m30s"."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,20})?", value):
        value = parse_decimal(value, MAX_SECONDS)
    return parse_seconds(value)


def choice(*words: str) -> Callable[[Any], str]:
    """Return what accepts one of these words."""

    def parse(value: Any) -> str:
        if value not in words:
            near = did_you_mean(plain(value), words) or f"; write {' or '.join(words)}"
            raise InputError(f"{shown(value)} is not possible{near}")
        return str(value)

    parse.__doc__ = f"Accept one of: {', '.join(words)}."
    return parse


def network(value: Any) -> IPv4Network:
    """Accept an IPv4 network in the form 240.0.0.0/4."""
    try:
        return IPv4Network(text(value))
    except ValueError as error:
        raise InputError(f"{shown(value)} is not an IPv4 network such as 240.0.0.0/4 ({error})") from None


def virtual_range(value: Any) -> IPv4Network:
    """Accept an IPv4 network such as 240.0.0.0/4, without loopback, link-local, multicast and 0.0.0.0/8."""
    found = network(value)
    for special in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "169.254.0.0/16"):
        if found.overlaps(IPv4Network(special)):
            raise InputError(f"{found} overlaps {special}, which is not for this; write for example 240.0.0.0/4")
    return found


def optional_network(value: Any) -> IPv4Network | None:
    """Accept an IPv4 network, or nothing."""
    return None if value in (None, "") else network(value)


def port_range(value: Any) -> tuple[int, int]:
    """Accept first and last port in the form 20000-29999."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*-\s*([0-9]{1,6})\s*", value) if isinstance(value, str) else None
    if match is None:
        raise InputError(f'{shown(value)} is not a range of ports; write for example "20000-29999"')
    first, last = (parse_number(match[part], 0, 999_999) for part in (1, 2))
    if not 1024 <= first <= last <= 65535:
        raise InputError(f"{shown(value)} is not possible; write two ports from 1024 to 65535, the lower one first")
    return first, last


def upstreams(value: Any) -> tuple[tuple[str, int], ...]:
    """Accept resolvers as address or address:port, in a list or separated by commas."""
    found = []
    for item in _items(value):
        address, colon, port = item.partition(":")
        try:
            found.append((str(IPv4Address(address)), integer(1, 65535)(port) if colon else 53))
        except AddressValueError:
            raise InputError(f"{shown(item)} is not an IPv4 address; write for example 9.9.9.9 or 9.9.9.9:53") from None
    return tuple(found)


def suffix(value: Any) -> str:
    """Accept a domain name in lower case."""
    found = text(value).strip(".")
    for label in found.split("."):
        parse_label(label, "domain")
    return found


def boolean(value: Any) -> bool:
    """Accept true or false."""
    if value in (True, False, "true", "false"):
        return value in (True, "true")
    raise InputError(f"{shown(value)} is neither true nor false")


def connect_to(value: Any) -> ConnectTo:
    """Accept what a container's `connect_to` accepts, in a list or separated by commas, or * for everything."""
    items = _items(value)
    if items == ["*"]:
        return ConnectTo(everything=True)
    return ConnectTo(allowances=tuple(Allowance.parse(item) for item in items))


def addresses(value: Any) -> frozenset[IPv4Address]:
    """Accept IPv4 addresses and networks, in a list or separated by commas."""
    found: set[IPv4Address] = set()
    for item in _items(value):
        try:
            network = IPv4Network(item)
        except ValueError:
            raise InputError(
                f"{shown(item)} is not an IPv4 address or network; write for example 10.0.0.7 or 10.0.0.0/24"
            ) from None
        if network.num_addresses + len(found) > MOST_ADDRESSES:
            raise InputError(f"{item} makes it more than {MOST_ADDRESSES} addresses; name fewer")
        found.update(network)
    return frozenset(found)


def meta(value: Any) -> tuple[tuple[str, str], ...]:
    """Accept a table of texts, or key=value separated by commas."""
    if not isinstance(value, dict):
        value = dict(_pair(item) for item in _items(value))
    for key, content in value.items():
        if not isinstance(content, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(key)):
            raise InputError(f'{shown(key)} = {shown(content)} is not possible; write for example zone = "a"')
    return tuple(sorted(value.items()))


def consul_address(value: Any) -> str:
    """Accept a URL of Consul's HTTP API: http, https, or unix."""
    found = text(value)
    parts = urlsplit(found)
    good = (parts.scheme in {"http", "https"} and parts.hostname) or (parts.scheme == "unix" and parts.path)
    if not good:
        raise InputError(
            f"{shown(value)} is not an address of Consul; "
            f"write for example http://127.0.0.1:8500 or unix:///run/consul.sock"
        )
    return found.rstrip("/")


def consul_ports(value: Any) -> frozenset[str | tuple[Protocol, int]]:
    """Accept gossip, rpc, grpc, http, dns, and ports as 8301 or 8301/udp, in a list or separated by commas."""
    found: set[str | tuple[Protocol, int]] = set()
    for item in _items(value):
        if item in CONSUL_WORDS:
            found.add(item)
            continue
        port, slash, protocol = item.partition("/")
        try:
            number = parse_number(port, 1, 65535)
            found |= {(p, number) for p in ([Protocol(protocol)] if slash else Protocol)}
        except (InputError, ValueError):
            raise InputError(
                f"{shown(item)} is neither a port nor one of {', '.join(CONSUL_WORDS)}; write for example 8301/udp"
            ) from None
    return frozenset(found)


def host_paths(value: Any) -> frozenset[str] | None:
    """Accept absolute paths without "..", in a list or separated by commas."""
    if value is None:
        return None
    found = frozenset(_items(value))
    for item in found:
        if not item.startswith("/") or ".." in item.split("/") or not item.isprintable():
            raise InputError(f'{shown(item)} is not an absolute path without ".."; write for example /srv/data')
    return found


def capabilities(value: Any) -> frozenset[str] | None:
    """Accept names of capabilities, in a list or separated by commas, or ALL."""
    return None if value is None else frozenset(parse_capabilities(_items(value)))


def key_folder(value: Any) -> str:
    """Accept one or more words with "/" between them."""
    found = text(value)
    if not all(_FOLDER.fullmatch(word) for word in found.split("/")):
        raise InputError(
            f'{shown(value)} is not a folder; write for example meshbox or team/meshbox: letters, digits, "-", "_" and'
            ' ".", without "/" at either end'
        )
    return found


def _pair(item: str) -> tuple[str, str]:
    key, equals, content = item.partition("=")
    if not equals:
        raise InputError(f'{shown(item)} has no "="; write for example zone=a')
    return key, content


def _items(value: Any) -> list[str]:
    """Split text at commas; take a list of texts as it is."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{shown(value)} is not a list of texts")
    return list(value)
