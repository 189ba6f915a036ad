"""One appliance per host, which also keeps `meshbox cleanup` and the appliance apart.

Two locks. The file in run_dir tells who holds it. But an image, a package and a checkout have run_dirs of their own: an
abstract socket belongs to the host's network namespace, which they all share, as do the rules and ports that two
appliances would fight over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from appliance.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET = "\0meshbox"
"""The abstract socket's name."""


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Hold both locks; they end with the process, however that ends. Raises HostError when one is taken."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        handle = (run_dir / "lock").open("a+")
    except OSError as error:
        remedy = "let root write there, or set run_dir" if os.geteuid() == 0 else "run meshbox with sudo"
        raise HostError(f"cannot write {run_dir}: {error.strerror}", remedy) from error
    with handle, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as name:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise _taken(handle.read().strip()) from None
        try:
            name.bind(SOCKET)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise HostError(f"cannot take the lock of this host: {error.strerror}") from error
            raise _taken(_holder()) from None
        name.listen()
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def held(run_dir: Path) -> bool:
    """Whether the locks are held with this run_dir. Trying to take them would hinder an appliance that starts."""
    holder = _holder()
    try:
        return bool(holder) and (run_dir / "lock").read_text() == holder
    except OSError:
        return False


def _taken(holder: str) -> HostError:
    return HostError(
        f"another meshbox (pid {holder or 'unknown'}) runs on this host",
        "stop it first; one appliance serves all containers",
    )


def _holder() -> str:
    """Return the process id of the socket's listener; empty where it cannot be seen from here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker, suppress(OSError):
        asker.setblocking(False)  # nobody accepts, so the queue may be full
        asker.connect(SOCKET)
        pid, _, _ = struct.unpack("iII", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return str(pid or "")  # 0: a process in another namespace of process ids
    return ""
