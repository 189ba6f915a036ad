"""Linux capabilities of a container (`cap_add`, `cap_drop`), and which one a deployed service goes without.

Docker gives CAP_NET_RAW to every container. With it a program sends packets in its neighbours' names. So whatever is
deployed drops it unless it asks for it. That is written into the spec when it is deployed: what was stored before keeps
its revision, its containers and their capabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from appliance.errors import InputError, did_you_mean
from appliance.text import plain, quoted

if TYPE_CHECKING:
    from appliance.model.spec import Container, Service

ALL = "ALL"
"""Docker's word for all capabilities."""
NET_RAW = "NET_RAW"
_PREFIX = "CAP_"

KNOWN = frozenset(
    {
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        NET_RAW,
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYSLOG",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "WAKE_ALARM",
    }
)
"""Those of capabilities(7) as of Linux 5.9, without `CAP_`. A host with an older kernel refuses some at the create."""


def parse_capabilities(value: Any, added: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Accept a list of capabilities, with or without `CAP_`, in any case; return their names sorted, each once.

    One that is `added` cannot be dropped: it would be kept without a word. `ALL` on one side with
    single ones on the other is fine.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f'{quoted(value, 60)} is not a list; write for example ["{NET_RAW}"]')
    found = tuple(sorted({_capability(item) for item in value}))
    for name in found:
        if name in added:
            raise InputError(f'"{name}" is in cap_add too; keep one of them')
    return found


def _capability(item: Any) -> str:
    name = item.upper().removeprefix(_PREFIX) if isinstance(item, str) else ""
    if name != ALL and name not in KNOWN:
        near = did_you_mean(plain(name), sorted(KNOWN)) or f'; write for example "{NET_RAW}", or "{ALL}"'
        raise InputError(f"{quoted(item, 60)} is not a capability{near}")
    return name


def drop_net_raw(service: Service) -> Service:
    """Return a service as it is deployed: each container drops NET_RAW unless it adds it, or drops everything."""
    return replace(service, containers=tuple(_without_net_raw(c) for c in service.containers))


def _without_net_raw(container: Container) -> Container:
    if not {NET_RAW, ALL}.isdisjoint(container.cap_add) or not {NET_RAW, ALL}.isdisjoint(container.cap_drop):
        return container
    return replace(container, cap_drop=tuple(sorted((*container.cap_drop, NET_RAW))))
