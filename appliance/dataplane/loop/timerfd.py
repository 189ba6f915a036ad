"""A timer that is waited for like a socket (timerfd_create(2)); Python has it from 3.13 on."""

from __future__ import annotations

import ctypes
import os
import time

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timerfd:
    """Readable once its time has passed, until it is set again."""

    def __init__(self) -> None:
        """Open it, not set. Raises OSError (EMFILE, ENFILE, ENOMEM)."""
        self.fd: int = _LIBC.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._settime = _LIBC.timerfd_settime
        self._spec = _Itimerspec()

    def set(self, seconds: float) -> None:
        """Become readable once after `seconds`, which must be between 0 and 1, both excluded."""
        self._spec.value.nanoseconds = int(seconds * 1e9)
        self._settime(self.fd, 0, ctypes.byref(self._spec), None)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
