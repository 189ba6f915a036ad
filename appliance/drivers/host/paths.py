"""Where a path of the host leads, symbolic links followed: what Docker mounts when it is told the path."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import trio

from appliance import image

MOST_LINKS = 40
"""Symbolic links in one path, as in the kernel (path_resolution(7))."""
_PLAIN = frozenset({errno.EINVAL, errno.ENOENT, errno.ENOTDIR})
"""What readlink(2) says of what is no link, or is not there: Docker makes the folders that are missing."""


def host_root() -> str:
    """Return where this process sees the host's files: in the image, those of process 1 (`--pid=host`)."""
    return "/proc/1/root" if image.IMAGE_MARK.exists() else "/"


async def follow(path: str) -> str:
    """Return where a path of the host leads, in a thread: the file system may be another computer's. Raises OSError."""
    return await trio.to_thread.run_sync(resolve, path, abandon_on_cancel=True)


def resolve(path: str, root: str | None = None) -> str:
    """Return the path without symbolic links, as it is within `root`. Raises OSError."""
    root = host_root() if root is None else root
    left = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while left:
        part = left.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del done[-1:]
            continue
        try:
            target = str(Path(root, *done, part).readlink())
        except OSError as error:
            if error.errno not in _PLAIN:
                raise
            done.append(part)
            continue
        links += 1
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            done.clear()
        left += target.split("/")[::-1]
    return "/" + "/".join(done)
