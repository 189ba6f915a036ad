"""Which container a network namespace belongs to, read from /proc before Docker says so."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import trio

from appliance.drivers.netns import identity
from appliance.errors import InputError, RetryError
from appliance.model.numbers import parse_number

LAST_PID = 2**22
"""The kernel's own limit (PID_MAX_LIMIT)."""

_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_PF_FORKNOEXEC = 0x40
"""Forked, and has executed no program since (include/linux/sched.h); `flags` of proc(5)."""
_FLAGS, _STARTED = 6, 19
"""Fields 9 and 22 of /proc/PID/stat (proc(5)), counted behind the name, which may have spaces and brackets."""


class Process(NamedTuple):
    """A process, for good: numbers of processes are used again."""

    pid: int
    started: int
    """Clock ticks since the host booted."""


class Owner(NamedTuple):
    """A container, and a process of its in the namespace."""

    container: str
    """Its id, 64 hex digits."""
    process: Process


async def find_owner(path: str) -> Owner | None:
    """Return the container whose namespace this is; None while no process is in it.

    Works before Docker reports the container. Needs the host's process ids (--pid=host). Where several containers
    share a namespace, any of them may be returned. Raises RetryError.
    """
    netns = identity.identify(path)
    try:
        return None if netns is None else await trio.to_thread.run_sync(_owner, netns.inode, abandon_on_cancel=True)
    except OSError as error:  # no descriptor is left, or /proc is closed to us
        raise RetryError(f"cannot look for the container of {path} in /proc: {error.strerror}") from error


def runs_program(process: Process) -> bool:
    """Return whether a container's first process may have begun its program; True where that cannot be told.

    The runtime forks it, prepares it, and at the very end lets it execute the program (runc, crun). Until then the
    kernel says of it that it has executed nothing since it was forked.
    """
    found = _stat(process.pid)
    return found is None or found[0] != process or not found[1] & _PF_FORKNOEXEC


def _stat(pid: int) -> tuple[Process, int] | None:
    """Return a process and its flags; None where it is gone or closed to us."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return Process(pid, int(fields[_STARTED])), int(fields[_FLAGS])
    except (OSError, LookupError, ValueError):
        return None


def _owner(inode: int) -> Owner | None:
    link = f"net:[{inode}]"
    for pid in _newest_first():
        try:
            if os.readlink(f"/proc/{pid}/ns/net") != link:  # noqa: PTH115 — there may be thousands of processes
                continue
            ids = _CONTAINER_ID.findall(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace"))
        except OSError:
            continue  # it has ended, or is closed to us
        found = _stat(pid)
        if ids and found is not None:
            return Owner(str(ids[-1]), found[0])
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
