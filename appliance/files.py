"""Files of the appliance's own: opened so that nobody else decides what is read or written.

A folder counts only while root, or the user of this process, owns it and nobody else can write it. What is opened in it
is a regular file and no link (O_NOFOLLOW, open(2)). The folder's own path may lead through links: they are the
operator's.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Flags of each open: no link is followed, and a pipe is not waited for."""
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnsafeError(PermissionError):
    """Somebody else could decide what is read or written there. `strerror` says why, and what to do."""

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        super().__init__(errno.EPERM, f"{why}; {remedy}", str(path))
        self.why = f"{path} {why}"
        self.remedy = remedy


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Open a folder that nobody else can change; its descriptor is closed at the end. Raises OSError, UnsafeError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in {0, os.geteuid()}:
            raise UnsafeError(folder, f"belongs to user {found.st_uid}", f"give it to root: chown root {folder}")
        if found.st_mode & OTHERS_WRITE:
            raise UnsafeError(folder, "can be written by other users", f"chmod go-w {folder}")
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """Return the descriptor of a regular file in a safe folder. Raises OSError, UnsafeError."""
    with open_folder(path.parent) as folder:
        return _open(path, flags, mode, folder)


def read(path: Path) -> bytes:
    """Return the content of a file in a safe folder. Raises OSError, UnsafeError."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def replace(path: Path, content: bytes) -> None:
    """Give a file in a safe folder this content, atomically, even when the power fails. Raises OSError, UnsafeError.

    It is written as `<name>.new`, which is made anew whatever has that name.
    """
    new = path.with_name(f"{path.name}.new")
    with open_folder(path.parent) as folder:
        with suppress(FileNotFoundError):
            os.unlink(new.name, dir_fd=folder)
        with os.fdopen(_open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, folder), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def _open(path: Path, flags: int, mode: int, folder: int) -> int:
    try:
        descriptor = os.open(path.name, flags | SAFELY, mode, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeError(path, "is a symbolic link", f"remove it: rm {path}") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise UnsafeError(path, "is not a regular file", "check its owner, and move it away")
    return descriptor
