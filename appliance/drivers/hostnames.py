"""Mesh names for processes of the host: our DNS server in the host's resolver settings, and a way to virtual IPs.

Three places, each undone by looking at the place itself, so that also a later start or `meshbox cleanup` can do it
after a crash:

- where systemd-resolved is in charge, a drop-in under /run;
- else two lines at the top of resolv.conf: whoever finds nothing listening there goes on to the next nameserver at
  once, so the host resolves names also after `kill -9`;
- a route for `vip_range` through the loopback interface, which lets connections begin that our rules then redirect.
"""

from __future__ import annotations

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

    from appliance.model.visitors import ConnectTo

RESOLVED = Path("/run/systemd/resolve")
"""systemd-resolved keeps the resolv.conf files here that /etc/resolv.conf is a link to."""
DROP_IN = Path("/run/systemd/resolved.conf.d/meshbox.conf")
REMARK = "# meshbox (host_access) is asked first; these two lines go when it stops, or with: meshbox cleanup\n"
OURS = re.compile(rf"^{re.escape(REMARK)}nameserver \S+\n", re.MULTILINE)
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

    async def put(self, servers: Iterable[IPv4Address], *, port: int, connect_to: ConnectTo, suffix: str) -> None:
        """Put everything in place that is not there yet. Raises RetryError, HostError."""
        await self._ip("replace", str(self._vip_range), "dev", "lo", "src", "127.0.0.1", "proto", ROUTE_PROTOCOL)
        if self._file is None:
            return
        if self.is_resolved:
            if _write(self._drop_in, _drop_in(servers, port, connect_to, suffix)):
                await _restart_resolved()
        else:
            text = "".join(f"{REMARK}nameserver {server}\n" for server in servers)
            present = _read(self._file)
            _write(self._file, text + OURS.sub("", present))

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


def _drop_in(servers: Iterable[IPv4Address], port: int, connect_to: ConnectTo, suffix: str) -> str:
    """Send only names of the mesh to us where they are known; else everything, which we pass on."""
    names = sorted({f"~{a.name}" for a in connect_to.allowances})
    domains = ["~."] if connect_to.everything else [*names, f"~{suffix}"]
    where = " ".join(str(server) if port == 53 else f"{server}:{port}" for server in servers)
    return f"# meshbox (host_access); removed when it stops\n[Resolve]\nDNS={where}\nDomains={' '.join(domains)}\n"


async def _restart_resolved() -> None:
    done = await run(["systemctl", "try-restart", "systemd-resolved"], timeout=TIMEOUT)
    if done.code != 0:
        raise RetryError(f"systemctl try-restart systemd-resolved: {done.error or done.code}")


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
    beside = path.with_name(f".{path.name}.meshbox")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8", errors="surrogateescape")
            if path.exists():
                shutil.copystat(path, beside)
                owner = path.stat()
                os.chown(beside, owner.st_uid, owner.st_gid)
            beside.replace(path)
        except OSError:  # a mounted file cannot be replaced, a sandbox may allow the file and not its folder
            beside.unlink(missing_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}; allow it, or set resolv_conf to nothing and name the server there"
        ) from error
    return True


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # it holds somebody else's
