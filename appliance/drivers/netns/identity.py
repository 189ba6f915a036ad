"""Which network namespace a file leads to.

A namespace is known by the device and inode of its file (NetnsId), never by its path: Docker uses paths again.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import trio

from appliance.model.network import NetnsId

HOST = "/proc/self/ns/net"
"""The file of the namespace that the appliance itself runs in: the host's."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")

_POLL = 0.002
"""Seconds between checks of a file that is about to become a namespace: no event reports a mount."""


@cache
def _namespace_device() -> int:
    """Return the device on which the kernel keeps all namespace files."""
    return Path(HOST).stat().st_dev


def identify(path: str) -> NetnsId | None:
    """Return which namespace the file leads to; None when it is gone, or an ordinary file (so far)."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    if found.st_dev != _namespace_device():
        return None
    return NetnsId(device=found.st_dev, inode=found.st_ino)


def host() -> str:
    """Return what tells this host from all others. It stays the same until the host boots."""
    return f"{_BOOT.read_text().strip()}/{Path(HOST).stat().st_ino}"


async def wait_namespace(path: str, *, timeout: float = 2.0) -> NetnsId | None:  # noqa: ASYNC109 — part of the answer
    """Wait until the file leads to a namespace. Docker makes the file first and mounts the namespace on it next.

    Returns None when it has vanished or is still an ordinary file after `timeout` seconds.
    """
    with trio.move_on_after(timeout):
        while (found := identify(path)) is None:
            if not os.path.lexists(path):  # noqa: ASYNC240 — a stat of a local file
                return None
            await trio.sleep(_POLL)
        return found
    return None
