"""Which container a network namespace belongs to, read from /proc before Docker says so."""

from __future__ import annotations

import os
import re
from pathlib import Path

import trio

from appliance.drivers.netns import identity
from appliance.errors import InputError, RetryError
from appliance.model.numbers import parse_number

LAST_PID = 2**22
"""The kernel's own limit (PID_MAX_LIMIT)."""

_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


async def find_container(path: str) -> str | None:
    """Return the id (64 hex digits) of the container whose namespace this is; None while no process is in it.

    Works before Docker reports the container. Needs the host's process ids (--pid=host). Where several containers
    share a namespace, any of them may be returned. Raises RetryError.
    """
    netns = identity.identify(path)
    try:
        return None if netns is None else await trio.to_thread.run_sync(_owner, netns.inode, abandon_on_cancel=True)
    except OSError as error:  # no descriptor is left, or /proc is closed to us
        raise RetryError(f"cannot look for the container of {path} in /proc: {error.strerror}") from error


def _owner(inode: int) -> str | None:
    link = f"net:[{inode}]"
    for pid in _newest_first():
        try:
            if os.readlink(f"/proc/{pid}/ns/net") != link:  # noqa: PTH115 — there may be thousands of processes
                continue
            ids = _CONTAINER_ID.findall(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace"))
        except OSError:
            continue  # it has ended, or is closed to us
        if ids:
            return str(ids[-1])
    return None


def _newest_first() -> list[int]:
    """Return all process ids, the latest first: the process searched for has just started."""
    pids = [pid for name in os.listdir("/proc") if (pid := _pid(name))]  # noqa: PTH208 — as above
    last = _pid(Path("/proc/loadavg").read_text(encoding="ascii").rpartition(" ")[2].strip())  # the latest given out
    # Ids count up and begin again at the bottom, so those above the last one are the oldest.
    return sorted(pids, key=lambda pid: (pid <= last, pid), reverse=True)


def _pid(text: str) -> int:
    """Return a process id, or 0 where this is none."""
    try:
        return parse_number(text, 0, LAST_PID)
    except InputError:
        return 0
