"""The host's own DNS resolvers, as resolv.conf(5) names them."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

RESOLV_CONF = "/etc/resolv.conf"
RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"
"""Names the resolvers that systemd-resolved asks; it listens on a loopback address itself."""
RESOLVED_STUBS = {("127.0.0.53", 53), ("127.0.0.54", 53)}
MOST_NAMESERVERS = 3
"""MAXNS of resolv.conf(5): the C library uses no more of a longer list."""


class HostResolvers:
    """Calling it returns the IPv4 resolvers as (address, port); the file is read again when it has changed."""

    def __init__(
        self,
        path: str = RESOLV_CONF,
        *,
        fixed: Sequence[tuple[str, int]] = (),
        own: Collection[tuple[str, int]] = (),
        resolved: str = RESOLVED_CONF,
    ) -> None:
        """Where `fixed` resolvers are given they replace the file's. `own` are our servers, which are left out."""
        self._path = Path(path)
        self._fixed = tuple(fixed)
        self._own = frozenset(own)
        self._resolved = Path(resolved)
        self._stamp: tuple[int, int] | None = None
        self._found: tuple[tuple[str, int], ...] = ()

    def __call__(self) -> Sequence[tuple[str, int]]:
        """Return the resolvers. A file that cannot be read leaves the former ones."""
        if self._fixed:
            return self._fixed
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._found = parse(self._path.read_text(encoding="utf-8", errors="replace"), self._own)
                self._stamp = stamp
                if self._found and RESOLVED_STUBS.issuperset(self._found) and self._resolved.exists():
                    # With host_access its stub asks us, so that our own questions would come back.
                    self._found = parse(self._resolved.read_text(encoding="utf-8", errors="replace"), self._own)
                    self._stamp = None
        except OSError:
            return self._found
        return self._found


def parse(text: str, own: Collection[tuple[str, int]] = ()) -> tuple[tuple[str, int], ...]:
    """Return the IPv4 nameservers of a resolv.conf without our own, at most three."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append((str(IPv4Address(words[1])), 53))
            except AddressValueError:
                continue
    return tuple([server for server in found if server not in own][:MOST_NAMESERVERS])
