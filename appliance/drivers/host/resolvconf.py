"""Mesh names for processes of the host: our DNS server in the host's resolver settings, and a route to virtual IPs.

There are three places. Each is reverted by what is found in the place itself, so that a later start or
`meshbox cleanup` can revert it after a crash:

- Where systemd-resolved is in charge, a drop-in under /run with our names as routing domains. With all names
  systemd-resolved would send us everything, and after `kill -9` the host would resolve nothing.
- Otherwise two lines at the top of resolv.conf. A program that finds nothing listening there tries the next nameserver
  at once, so the host resolves names even after `kill -9`.
- A route for `vip_range` through the loopback interface, so that connections can begin, which our rules then redirect.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.drivers.process import run
from appliance.errors import HostError, RetryError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network

RESOLVED = Path("/run/systemd/resolve")
"""The folder of systemd-resolved's resolv.conf files, to which /etc/resolv.conf is a link."""
DROP_IN = Path("/run/systemd/resolved.conf.d/meshbox.conf")
REMARK = "# meshbox (host_access) is asked first; these two lines go when it stops, or with: meshbox cleanup\n"
OURS = re.compile(rf"^{re.escape(REMARK)}nameserver \S+\n", re.MULTILINE)
IN_PLACE = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors of replacing a file that may still be written in place: a mount, or a folder closed by a sandbox."""
TIMEOUT = 20.0
"""Seconds that ip(8) or systemctl(1) may take."""
ROUTE_PROTOCOL = "77"
"""Marks our route: a number that rt_protos leaves to administrators."""


class ResolverSettings:
    """The resolver settings of one host. Where `resolv_conf` is empty, only the route."""

    def __init__(self, *, resolv_conf: str, vip_range: IPv4Network, drop_in: Path = DROP_IN) -> None:
        """Touch nothing yet."""
        self._file = Path(resolv_conf) if resolv_conf else None
        self._vip_range = vip_range
        self._drop_in = drop_in

    @property
    def uses_resolved(self) -> bool:
        """Whether this host asks systemd-resolved."""
        return self._file is not None and RESOLVED in self._file.resolve().parents

    async def apply(self, server: IPv4Address | None, *, port: int, domains: Iterable[str]) -> None:
        """Put everything in place that is not there yet. Raises RetryError, HostError.

        `domains` are the names that systemd-resolved asks us for. Without systemd-resolved we are asked for every name,
        and forward what is not ours.
        """
        await self._ip("replace", str(self._vip_range), "dev", "lo", "src", "127.0.0.1", "proto", ROUTE_PROTOCOL)
        if self._file is None or server is None:
            return
        if self.uses_resolved:
            if _write(self._drop_in, _drop_in(server, port, domains)):
                await _restart_resolved()
        else:
            _write(self._file, f"{REMARK}nameserver {server}\n{OURS.sub('', _read(self._file))}")

    async def revert(self) -> list[str]:
        """Undo `apply`, whichever process did it; return in words what was removed. Raises RetryError, HostError."""
        done = []
        listed = await self._ip("show", "proto", ROUTE_PROTOCOL)
        if listed.strip():
            await self._ip("flush", "proto", ROUTE_PROTOCOL)
            done.append("route to virtual IPs")
        if self._file is not None and OURS.search(text := _read(self._file)):
            _write(self._file, OURS.sub("", text))
            done.append(f"nameserver in {self._file}")
        if self._drop_in.exists():
            self._drop_in.unlink()
            _remove_empty(self._drop_in.parent)
            await _restart_resolved()
            done.append(str(self._drop_in))
        return done

    async def _ip(self, *arguments: str) -> str:
        done = await run(["ip", "-4", "route", *arguments], timeout=TIMEOUT)
        if done.code != 0:
            raise RetryError(f"ip route {' '.join(arguments)}: {done.error or done.code}")
        return done.output


def choose_server(addresses: Iterable[IPv4Address]) -> IPv4Address | None:
    """Return the one of our servers that the host asks: each would take the place of one of its own resolvers."""
    return min(addresses, key=lambda a: (not a.is_loopback, a), default=None)


def _drop_in(server: IPv4Address, port: int, domains: Iterable[str]) -> str:
    where = str(server) if port == 53 else f"{server}:{port}"
    routing = " ".join(f"~{domain}" for domain in sorted(domains))
    return f"# meshbox (host_access); removed when it stops\n[Resolve]\nDNS={where}\nDomains={routing}\n"


async def _restart_resolved() -> None:
    """Make systemd-resolved read its settings again. Raises RetryError."""
    # reset-failed forgets earlier starts: after the sixth within ten seconds systemd would leave it stopped.
    for verb in ("reset-failed", "try-restart"):
        done = await run(["systemctl", verb, "systemd-resolved"], timeout=TIMEOUT)
        if done.code != 0:
            raise RetryError(f"systemctl {verb} systemd-resolved: {done.error or done.code}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RetryError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> bool:
    """Give a file this content, atomically where its folder allows that; return whether it was different."""
    if path.exists() and _read(path) == text:
        return False
    path = path.resolve()
    content = text.encode(errors="surrogateescape")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _replace(path, content)
        except OSError as error:
            if error.errno not in IN_PLACE or not path.exists():
                raise
            _overwrite(path, content)
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}; mend that, or set resolv_conf to nothing and name the server there"
        ) from error
    return True


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.meshbox")
    beside.unlink(missing_ok=True)
    try:
        beside.touch(exist_ok=False)  # so that nothing is written where a link leads
        beside.write_bytes(content)
        if path.exists():
            shutil.copystat(path, beside)
            owner = path.stat()
            os.chown(beside, owner.st_uid, owner.st_gid)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _overwrite(path: Path, content: bytes) -> None:
    """Write in place. Space is allocated first, so that a full disk leaves the file as it is."""
    with path.open("r+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(len(content), 1))
        file.write(content)
        file.truncate()


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # it holds files of others
