"""The files of a directory as they come and go, even while the directory itself goes and comes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trio
from inotify_simple import INotify, flags

from appliance.errors import HostError

_COME = flags.CREATE | flags.MOVED_TO
_GONE = flags.DELETE | flags.MOVED_FROM
_LOST = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED | flags.Q_OVERFLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file has come (`present`) or gone."""

    path: str
    present: bool


def watch_directory(directory: str) -> DirectoryWatch:
    """Return an iterator of the files that come to and go from `directory`, beginning with those that are there.

    Use it as a context manager, so that the watch ends with the block. Raises HostError when the host's limit of
    inotify instances is reached.
    """
    return DirectoryWatch(directory)


class DirectoryWatch:
    """An endless asynchronous iterator of FileChange; one task may wait on it.

    The directory may be absent, be removed and be made again: while it is absent, its nearest existing ancestor is
    watched. After that, and when the kernel has dropped events, the directory is compared with what was known. A file
    that is replaced may be reported twice.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory).absolute()
        self._known: set[str] = set()
        self._changes: deque[FileChange] = deque()
        self._inotify = _open()
        self._whole = False
        """Whether the directory itself is watched, rather than an ancestor."""
        self._arm()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the watch; a task that waits on it gets trio.ClosedResourceError."""
        if not self._inotify.closed:
            trio.lowlevel.notify_closing(self._inotify.fd)
            self._inotify.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FileChange:
        await trio.lowlevel.checkpoint()
        while not self._changes:
            await trio.lowlevel.wait_readable(self._inotify.fd)
            self._read()
        return self._changes.popleft()

    def _read(self) -> None:
        for event in self._inotify.read(timeout=0):
            if not self._whole or event.mask & _LOST:
                self._arm()
                return
            if event.mask & _COME:
                self._known.add(event.name)
                self._report(event.name, present=True)
            elif event.mask & _GONE:
                self._known.discard(event.name)
                self._report(event.name, present=False)

    def _arm(self) -> None:
        """Watch afresh, with a new descriptor, so that no event of a former watch is left."""
        self._inotify.close()
        self._inotify = _open()
        absent = None
        for folder in (self._directory, *self._directory.parents):
            if self._add(folder):
                break
            absent = folder
        if absent is not None and absent.is_dir():
            self._arm()  # it was made between the two checks
            return
        self._whole = absent is None
        self._compare()

    def _add(self, folder: Path) -> bool:
        try:
            self._inotify.add_watch(folder, _COME | _GONE | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise HostError(f"cannot watch {folder}: {error.strerror}", "raise fs.inotify.max_user_watches") from error
        return True

    def _compare(self) -> None:
        try:
            there = {entry.name for entry in self._directory.iterdir()}
        except OSError:
            there = set()
        for name in sorted(self._known - there):
            self._report(name, present=False)
        for name in sorted(there - self._known):
            self._report(name, present=True)
        self._known = there

    def _report(self, name: str, *, present: bool) -> None:
        self._changes.append(FileChange(path=str(self._directory / name), present=present))


def _open() -> INotify:
    try:
        return INotify(nonblocking=True)
    except OSError as error:
        raise HostError(f"cannot watch files: {error.strerror}", "raise fs.inotify.max_user_instances") from error
