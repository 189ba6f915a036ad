"""One appliance per host, which also keeps `meshbox cleanup` and the appliance apart.

Three locks. The file in run_dir tells who holds it. But an image, a package and a checkout have run_dirs of their own.
The others belong to the host's network namespace, which they all share, as do the rules and ports that two appliances
would fight over:

- An abstract socket, whose listener the kernel names. Any user may take its name, so it is believed only of root.
- A port that only root may bind. It decides where the name is another user's, or does not say whose it is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from appliance import files
from appliance.errors import HostError
from appliance.files import UnsafeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import TextIOWrapper

SOCKET = "\0meshbox"
"""The abstract socket's name."""
GUARD = ("127.66.0.2", 4)
"""The UDP address that goes with it. Port 4 is unassigned (IANA's registry). Only root may bind ports below 1024, but
for hosts with a lower net.ipv4.ip_unprivileged_port_start."""
IP_FREEBIND = getattr(socket, "IP_FREEBIND", 15)
"""Binds although the loopback interface is down (ip(7))."""
UDP_SOCKETS = Path("/proc/self/net/udp")
UNIX_SOCKETS = Path("/proc/self/net/unix")


class TakenError(HostError):
    """Another appliance, or a cleanup, has the lock."""


class _Holder(NamedTuple):
    """Who listens at the abstract socket. 0 is the process id of one in another namespace of process ids."""

    pid: int
    uid: int

    @property
    def believed(self) -> bool:
        """Whether it may be an appliance: one of root, or of this very user."""
        return self.uid in {0, os.geteuid()}


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Hold all locks; they end with the process, however that ends.

    Raises TakenError when one is taken, HostError where run_dir cannot be used. That another user has taken the name of
    the abstract socket keeps nobody from it; `squatted` tells of it.
    """
    with _open(run_dir) as handle, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as name, _Guard() as guard:
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
            holder = _holder()
            if holder is not None and holder.believed:
                raise _taken(str(holder.pid or "")) from None
        else:
            name.listen()
        if not guard.take():
            raise _taken("") from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def held(run_dir: Path) -> bool:
    """Whether the locks are held with this run_dir. Trying to take them would hinder an appliance that starts."""
    try:
        content = files.read(run_dir / "lock").decode(errors="replace")
    except OSError:
        return False
    holder = _holder()
    if holder is not None and holder.believed:
        return content == str(holder.pid)
    return bool(content) and _guarded()


def squatted() -> str:
    """Return which process of another user has the name of the abstract socket, in words; nothing if none has."""
    holder = _holder()
    named = f" @{SOCKET[1:]}".encode()
    with suppress(OSError):
        if (holder is not None and holder.believed) or not any(
            line.endswith(named) for line in UNIX_SOCKETS.read_bytes().splitlines()
        ):
            return ""
    process = "a process that cannot be named" if holder is None else f"process {holder.pid or 'unknown'}"
    user = "" if holder is None else f" of user {holder.uid}"
    return (
        f"{process}{user} has taken the name of this host's lock (abstract socket @{SOCKET[1:]}) and is no "
        "meshbox: nothing is lost by that, but end that process"
    )


class _Guard(socket.socket):
    """The port that only root may bind."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)

    def take(self) -> bool:
        """Bind it; return False if another appliance has it. Where nobody can bind it, the other locks must do."""
        self.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        try:
            self.bind(GUARD)
        except OSError as error:
            return error.errno != errno.EADDRINUSE or not _guarded()
        return True


def _guarded() -> bool:
    """Whether root, or this very user, has the guard's port. Another program may have it at all addresses."""
    address = f"{struct.unpack('=I', socket.inet_aton(GUARD[0]))[0]:08X}:{GUARD[1]:04X}"
    owners = {"0", str(os.geteuid())}
    with suppress(OSError):
        for line in UDP_SOCKETS.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[1] == address and fields[7] in owners:
                return True
    return False


def _open(run_dir: Path) -> TextIOWrapper:
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        return os.fdopen(files.open_file(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), "a+")
    except UnsafeError as error:
        raise HostError(error.why, error.remedy) from error
    except OSError as error:
        remedy = "let root write there, or set run_dir" if os.geteuid() == 0 else "run meshbox with sudo"
        raise HostError(f"cannot write {run_dir}: {error.strerror}", remedy) from error


def _taken(holder: str) -> TakenError:
    return TakenError(
        f"another meshbox (pid {holder or 'unknown'}) runs on this host",
        "stop it first; one appliance serves all containers",
    )


def _holder() -> _Holder | None:
    """Return the listener of the abstract socket; None where nobody listens or its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker, suppress(OSError):
        asker.setblocking(False)  # nobody accepts, so the queue may be full
        asker.connect(SOCKET)
        pid, uid, _ = struct.unpack("iII", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return _Holder(pid, uid)
    return None
