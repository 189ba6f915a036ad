"""The addresses by which a backend tells its callers apart, where the data plane dials inside its namespace.

They are a part of `vip_range` that no name has, so that rules tell them from virtual IPs by the prefix alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from appliance.errors import InputError
from appliance.text import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.model.names import Name

PART_BITS = 4
"""The callers' part is the first of 2**PART_BITS of `vip_range`."""
SHARES = 8
"""Addresses of one caller, where there is room for so many: its own, and further ones for want of ports."""
ROOMY = 1 << 13
"""Least number of addresses of a part that has room for that: a thousand callers and their further addresses."""

_KEY = re.compile(r"[!-~]{1,200}")
_DOCKER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerSources:
    """From where each caller's connections come."""

    step: int = 0
    """From each address of a caller to its next, of which it has SHARES; 0: it has one address only."""
    addresses: Mapping[IPv4Address, IPv4Address] = field(default_factory=dict)
    """The first address of each caller, by the address that listeners know the caller by."""


def callers_part(vip_range: IPv4Network) -> IPv4Network:
    """Return the part of the range that callers have; the first address of it is shared by those without their own."""
    bits = min(vip_range.prefixlen + PART_BITS, vip_range.max_prefixlen)
    return IPv4Network((vip_range.network_address, bits))


def caller_step(vip_range: IPv4Network) -> int:
    """Return the distance from each address of a caller to its next; 0 where each has one only."""
    size = callers_part(vip_range).num_addresses
    return size // SHARES if size >= ROOMY else 0


def first_address(address: IPv4Address, vip_range: IPv4Network) -> IPv4Address:
    """Return the first address of the caller that has this one."""
    step = caller_step(vip_range)
    base = vip_range.network_address
    return base + (int(address) - int(base)) % step if step else address


def replica_key(name: Name, number: int) -> str:
    """Return the key of a container in allocations. No other kind of caller has a dot in front of the slash."""
    return f"{name}/{number}"


HOST_KEY = "host"
"""The key of this host's own processes."""


def guest_key(address: IPv4Address) -> str:
    """Return the key of a guest."""
    return f"guest/{address}"


def machine_key(address: IPv4Address) -> str:
    """Return the key of another machine of the mesh."""
    return f"machine/{address}"


def parse_caller_key(text: object) -> str:
    """Accept what may be the key of a caller: 1 to 200 visible characters. Raises InputError."""
    if isinstance(text, str) and _KEY.fullmatch(text):
        return text
    raise InputError(f"{quoted(text)} is no caller")


def is_docker_name(text: str) -> bool:
    """Whether Docker allows this as a container's name, and it has 255 characters at most."""
    return bool(_DOCKER_NAME.fullmatch(text))


def parse_docker_name(text: object) -> str:
    """Accept such a name. Raises InputError."""
    if isinstance(text, str) and is_docker_name(text):
        return text
    raise InputError(f"{quoted(text)} is no name of a container")
