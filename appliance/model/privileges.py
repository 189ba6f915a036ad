"""What of a host a spec may ask for, beyond a container of its own: folders of the host, and more capabilities.

Whoever may store specs asks in them for what is on every machine. So each machine says what it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.model.spec import Container

ALL = "ALL"
"""Docker's word for all capabilities."""
DOCKER_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)
"""What every container has by Docker's default (moby, oci/caps/defaults.go)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """What a machine gives to specs.

    `paths` are absolute; what lies below one is given with it, and `/` is all. `capabilities` are those beyond Docker's
    default, without `CAP_`; `ALL` is all.
    """

    paths: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()

    @property
    def all_paths(self) -> bool:
        """Whether no path is refused."""
        return any(not _components(path) for path in self.paths)

    def lacking(self, containers: Iterable[Container]) -> tuple[str, ...]:
        """Return what these containers ask for and the machine does not give: paths, then capabilities, sorted."""
        paths: set[str] = set()
        capabilities: set[str] = set()
        for container in containers:
            paths.update(path for path in host_paths(container) if not self.covers(path))
            capabilities.update(set(container.cap_add) - DOCKER_CAPABILITIES)
        if ALL in self.capabilities:
            capabilities.clear()
        return (*sorted(paths), *sorted(capabilities - self.capabilities))

    def covers(self, path: str) -> bool:
        """Whether the machine gives a path, by its components: `/data` covers `/data/x` and not `/database`.

        What leads upwards (`..`) is covered by `/` alone.
        """
        parts = _components(path)
        return self.all_paths or (".." not in parts and any(_leads(_components(one), parts) for one in self.paths))


EVERYTHING = Privileges(paths=frozenset({"/"}), capabilities=frozenset({ALL}))


def host_paths(container: Container) -> tuple[str, ...]:
    """Return the paths of the host that a container mounts, as its volumes name them."""
    sources = (source for source, colon, _ in (text.partition(":") for text in container.volumes) if colon)
    return tuple(source for source in sources if source.startswith("/"))


def _components(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in {"", "."})


def _leads(prefix: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return parts[: len(prefix)] == prefix
