"""What the process that carries traffic asks of the scheduler: to run before planning and nft on a few cores."""

from __future__ import annotations

import ctypes
import os
import platform
from struct import Struct

import structlog

log = structlog.get_logger()

NICE = -10
"""Nice value (setpriority(2))."""
SLICE = 100_000
"""Nanoseconds of a time slice, the shortest there is (sched(7), EEVDF since Linux 6.12). A process with a shorter slice
than the running one may interrupt it, instead of waiting for the end of its slice."""

_ATTRIBUTES = Struct("=IIQiIQQQ")
"""struct sched_attr of sched_setattr(2): size, policy, flags, nice, priority, runtime, deadline, period."""
_SCHED_OTHER = 0
_RESET_ON_FORK = 1
_NUMBERS = {"x86_64": 314, "aarch64": 274}
"""The system call's number, for which this C library may have no function yet."""


def raise_own(nice: int = NICE) -> None:
    """Raise the priority of this thread, not of its children. Logs what the system does not grant."""
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, _SCHED_OTHER, _RESET_ON_FORK, nice, 0, SLICE, 0, 0)
    number = _NUMBERS.get(platform.machine())
    if number is None:
        log.debug("cannot raise the priority of traffic on this architecture", machine=platform.machine())
    elif ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0):
        if nice < 0:
            raise_own(nice=0)  # without CAP_SYS_NICE
        else:
            log.debug("cannot raise the priority of traffic", error=os.strerror(ctypes.get_errno()))
