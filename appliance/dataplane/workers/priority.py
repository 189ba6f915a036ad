"""Traffic goes before planning and nft where cores are few: what the process that carries it asks of the scheduler."""

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
"""Nanoseconds of a time slice, the least there is (sched(7), EEVDF since Linux 6.12): who asks for a shorter one than
the process that runs at the moment may interrupt it, instead of waiting for the end of its slice."""

_ATTRIBUTES = Struct("=IIQiIQQQ")
"""struct sched_attr of sched_setattr(2): size, policy, flags, nice, priority, runtime, deadline, period."""
_SCHED_OTHER = 0
_RESET_ON_FORK = 1
_NUMBERS = {"x86_64": 314, "aarch64": 274}
"""The system call's number, for which this C library may have no function yet."""


def take(nice: int = NICE) -> None:
    """Ask for it, for this thread and not for its children. Logs what the system does not grant."""
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, _SCHED_OTHER, _RESET_ON_FORK, nice, 0, SLICE, 0, 0)
    number = _NUMBERS.get(platform.machine())
    if number is None:
        log.debug("traffic gets no precedence over planning on this architecture", machine=platform.machine())
    elif ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0):
        if nice < 0:
            take(nice=0)  # without CAP_SYS_NICE
        else:
            log.debug("traffic gets no precedence over planning", error=os.strerror(ctypes.get_errno()))
