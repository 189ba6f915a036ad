"""Ethernet addresses as whole numbers of 48 bits: a number cannot carry anything else into a ruleset."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

from appliance.errors import InputError
from appliance.text import quoted

_FORM = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_LINK_LOCAL = 0xFE80 << 112
_UNIVERSAL = 1 << 57
"""The universal/local bit, which the interface identifier has inverted (RFC 4291, appendix A)."""


def parse_mac(text: str) -> int:
    """Parse `02:42:ac:11:00:02`. Raises InputError."""
    if not _FORM.fullmatch(text):
        raise InputError(f"{quoted(text, 60)} is not an Ethernet address such as 02:42:ac:11:00:02")
    return int(text.replace(":", ""), 16)


def format_mac(mac: int) -> str:
    """Return `02:42:ac:11:00:02`."""
    return int(mac).to_bytes(6, "big").hex(":")


def link_local(mac: int) -> IPv6Address:
    """Return the link-local address that the kernel makes of it (EUI-64; its default, `addr_gen_mode` 0)."""
    identifier = (mac >> 24) << 40 | 0xFFFE << 24 | mac & 0xFFFFFF
    return IPv6Address(_LINK_LOCAL | identifier ^ _UNIVERSAL)
