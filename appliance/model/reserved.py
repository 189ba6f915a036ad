"""Service names that programs, resolvers or hosts give a meaning of their own. A service called so is not found."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "alt": "resolvers need not look such names up in DNS (RFC 9476 §2)",
        "arpa": "names of addresses, of IPv6 prefixes and of resolvers are there (RFC 3172, RFC 8880, RFC 9462)",
        "internal": "hosts, clouds and the mesh itself have names there, such as host.docker.internal",
        "invalid": "resolvers say of themselves that such names do not exist (RFC 6761 §6.4)",
        "local": "resolvers ask for such names by multicast (RFC 6762 §3)",
        "localhost": "programs take such names for their own machine (RFC 6761 §6.3)",
        "onion": "programs do not ask DNS for such names (RFC 7686 §2)",
    }
)
"""By label, why. `test` and `example` (RFC 6761 §6.2, §6.5) are not among them: they work as any other name."""


def reserved(service: str) -> str | None:
    """Return why a service should not be called so, or None."""
    why = RESERVED.get(service)
    return f'service name "{service}" is reserved: {why}' if why is not None else None
