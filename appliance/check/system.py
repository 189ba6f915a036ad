"""What the appliance needs of its process and of the system: rights, programs, open files, the time of day."""

from __future__ import annotations

import os
import resource
import shutil
import time
from pathlib import Path

from appliance import image
from appliance.model.finding import Finding, failed, ok, warning

FEW_FILES = 4096
"""Open files below which a busy proxy runs out: two per connection."""
PROJECT_BEGAN = 1_790_000_000
"""Seconds since the epoch: a clock that is before this is wrong."""
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
"""linux/capability.h"""


def privileges() -> Finding:
    """Check for root, and for the capabilities to enter namespaces and change their rules."""
    if os.geteuid() != 0:
        return failed("privileges", "meshbox is not run by root", "run it with sudo, or as a system service")
    effective = next(
        (
            int(line.split()[1], 16)
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            if line.startswith("CapEff")
        ),
        0,
    )
    lacking = [
        name
        for number, name in ((CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"))
        if not effective >> number & 1
    ]
    if lacking:
        return failed("privileges", f"{' and '.join(lacking)} missing", more_rights())
    return ok("privileges", "root, with CAP_NET_ADMIN and CAP_SYS_ADMIN")


def more_rights() -> str:
    """Return how to get capabilities that are missing."""
    if image.IMAGE_MARK.exists() or image.CONTAINER_MARK.exists():
        return "run the container with --privileged"
    return "run it as root with all capabilities (of a systemd unit: CapabilityBoundingSet)"


def programs() -> list[Finding]:
    """Check that the programs that are run beside nft are installed."""
    findings = []
    for program, package in (("nsenter", "util-linux"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            findings.append(failed(program, f"the program {program} was not found", f"apt-get install {package}"))
        else:
            findings.append(ok(program, "present"))
    return findings


def open_files(limit: int | None = None) -> Finding:
    """Check the limit of open files; None: that of this process."""
    if limit is None:
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < FEW_FILES:
        return warning(
            "open files", f"limit is {limit}", "raise it (ulimit -n, LimitNOFILE=): each connection uses two"
        )
    return ok("open files", f"limit is {'none' if limit == resource.RLIM_INFINITY else limit}")


def clock() -> Finding:
    """Check for a clock that was never set."""
    if time.time() < PROJECT_BEGAN:
        return warning("clock", f"it is {time.strftime('%Y-%m-%d')} here", "set the clock (timedatectl set-ntp true)")
    return ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %Z"))
