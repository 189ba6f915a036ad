"""Mesh names for processes of the host: our DNS server in the host's resolver settings, and a way to virtual IPs.

Three places, each undone by looking at the place itself, so that also a later start or `meshbox cleanup` can do it
after a crash:

- where systemd-resolved is in charge, a drop-in under /run, with the names that are ours as routing domains: with
  all names it would send us everything, and after `kill -9` the host would resolve nothing;
- else two lines at the top of resolv.conf: whoever finds nothing listening there goes on to the next nameserver at
  once, so the host resolves names also after `kill -9`;
- a route for `vip_range` through the loopback interface, which lets connections begin that our rules then redirect.
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
"""systemd-resolved keeps the resolv.conf files here that /etc/resolv.conf is a link to."""
DROP_IN = Path("/run/systemd/resolved.conf.d/meshbox.conf")
REMARK = "# meshbox (host_access) is asked first; these two lines go when it stops, or with: meshbox cleanup\n"
OURS = re.compile(rf"^{re.escape(REMARK)}nameserver \S+\n", re.MULTILINE)
IN_PLACE = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS}
"""Why a file cannot be replaced and may yet be written: it is a mount, or a sandbox allows it and not its folder."""
TIMEOUT = 20.0
"""Seconds that ip(8) or systemctl(1) may take."""
ROUTE_PROTOCOL = "77"
"""Marks our route among others: a number that rt_protos leaves to administrators."""


class HostNames:
    """The settings of one host. `resolv_conf` empty: only the route."""

    def __init__(self, *, resolv_conf: str, vip_range: IPv4Network, drop_in: Path = DROP_IN) -> None:
        """Touch nothing yet."""
        self._file = Path(resolv_conf) if resolv_conf else None
        self._vip_range = vip_range
        self._drop_in = drop_in

    @property
    def is_resolved(self) -> bool:
        """Whether systemd-resolved is asked on this host."""
        return self._file is not None and RESOLVED in self._file.resolve().parents

    async def put(self, server: IPv4Address | None, *, port: int, domains: Iterable[str]) -> None:
        """Put everything in place that is not there yet. Raises RetryError, HostError.

        `domains` are what systemd-resolved asks us for; without it we are asked for everything, and pass it on.
        """
        await self._ip("replace", str(self._vip_range), "dev", "lo", "src", "127.0.0.1", "proto", ROUTE_PROTOCOL)
        if self._file is None or server is None:
            return
        if self.is_resolved:
            if _write(self._drop_in, _drop_in(server, port, domains)):
                await _restart_resolved()
        else:
            _write(self._file, f"{REMARK}nameserver {server}\n{OURS.sub('', _read(self._file))}")

    async def undo(self) -> list[str]:
        """Remove whatever is there of ours; return it in words. Raises RetryError, HostError."""
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


def chosen(addresses: Iterable[IPv4Address]) -> IPv4Address | None:
    """Return which of our servers the host asks: one, since each takes the place of a resolver of its own."""
    return min(addresses, key=lambda a: (not a.is_loopback, a), default=None)


def _drop_in(server: IPv4Address, port: int, domains: Iterable[str]) -> str:
    where = str(server) if port == 53 else f"{server}:{port}"
    routing = " ".join(f"~{domain}" for domain in sorted(domains))
    return f"# meshbox (host_access); removed when it stops\n[Resolve]\nDNS={where}\nDomains={routing}\n"


async def _restart_resolved() -> None:
    """Let it read its settings again. Raises RetryError."""
    # The first forgets earlier starts: at the sixth within ten seconds systemd would leave it stopped.
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
    """Bring a file to this content, at once if its folder allows that; return whether it was another before."""
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
    try:
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
    """Write in place. Space is taken first, so that a full disk leaves the file as it is."""
    with path.open("r+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(len(content), 1))
        file.write(content)
        file.truncate()


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # it holds somebody else's
