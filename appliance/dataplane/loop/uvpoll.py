"""libuv's two functions for waiting outside its loop, which uvloop does not offer itself.

libuv: "Get backend file descriptor" and "Get the poll timeout" (docs.libuv.org, uv_loop_t). They are called in the
library that uvloop is, or is linked with, on the loop that uvloop hands out for that purpose.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import uvloop.loop

if TYPE_CHECKING:
    import asyncio

_UV = ctypes.CDLL(uvloop.loop.__file__)
_UV.uv_backend_fd.argtypes = _UV.uv_backend_timeout.argtypes = (ctypes.c_void_p,)
_capsule = uvloop.loop.libuv_get_loop_t_ptr  # type: ignore[attr-defined]  # it is there, and not in the stub
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_pointer.restype = ctypes.c_void_p


class UvPoll:
    """What a uvloop waits for; only valid while the loop is open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ctypes.c_void_p(_pointer(_capsule(loop), None))
        self._timeout = _UV.uv_backend_timeout
        self.fd: int = _UV.uv_backend_fd(self._loop)
        """The epoll set in which it waits."""

    def timeout(self) -> int:
        """Return for how many milliseconds it may wait: 0 if callbacks are due, -1 if without limit."""
        milliseconds: int = self._timeout(self._loop)
        return milliseconds
