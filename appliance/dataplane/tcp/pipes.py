"""Pipes that carry bulk data from socket to socket inside the kernel, borrowed only while bytes are in them."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

SIZE = 1 << 20
"""Wanted capacity in bytes; the kernel may allow less (pipe-max-size, pipe-user-pages-soft in pipe(7))."""
SPARE = 16
"""Most empty pipes kept for the next stream."""
F_SETPIPE_SZ = 1031
"""From linux/fcntl.h; the name may be absent from Python's fcntl."""


class Pipe:
    """An open pipe; `held` is the number of bytes in it."""

    __slots__ = ("held", "read", "write")

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with suppress(OSError):  # the default of 64 KiB works too, in more turns
            fcntl.fcntl(self.write, F_SETPIPE_SZ, SIZE)

    def close(self) -> None:
        """Close both ends; the bytes in it are lost."""
        os.close(self.read)
        os.close(self.write)


class PipePool:
    """Lends pipes."""

    def __init__(self, most: int = 1 << 30) -> None:
        """`most` is the lowest descriptor that no pipe may have: those beyond are for others (shares.py)."""
        self._most = most
        self._spare: list[Pipe] = []
        self.lent = 0

    def take(self) -> Pipe | None:
        """Lend an empty pipe; None when there are no file descriptors left for it."""
        if self._spare:
            pipe = self._spare.pop()
        else:
            try:
                pipe = Pipe()
            except OSError:
                return None
            if pipe.write >= self._most:
                pipe.close()
                return None
        self.lent += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back; one with bytes in it is closed."""
        self.lent -= 1
        if pipe.held or len(self._spare) >= SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Close the spare ones."""
        while self._spare:
            self._spare.pop().close()
