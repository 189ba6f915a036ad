"""What the appliance needs of nft and the kernel: a version that works, our rules, room to track connections."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from appliance.drivers.netns import identity, listening
from appliance.drivers.nft.client import Nft
from appliance.drivers.nft.features import OLDEST, bridge_sample, door_sample, parse_version, samples
from appliance.errors import InputError, MeshboxError
from appliance.model.finding import Finding, failed, ok, warning
from appliance.model.names import Protocol
from appliance.model.numbers import parse_number
from appliance.text import quoted

TRACKING = Path("/proc/sys/net/netfilter")
"""Where the kernel says how many connections it tracks, and how many it may; absent until something asks it to."""
FEW_TRACKED = 65_536
"""Entries of connection tracking, as the kernel chooses with 1 GiB of memory: 32,768 open connections through a proxy,
or 273 new ones a second, since each has two entries that stay for 120 s after it has closed (bench/SCALING.md)."""
NEARLY_FULL = 0.75
"""Part of the entries. At 0.95 the kernel begins to drop those of connections that are closing."""


def nft() -> Finding:
    """Check for nft in a version that works."""
    if shutil.which("nft") is None:
        return failed("nft", "the program nft was not found", "apt-get install nftables")
    return nft_version(subprocess.run(["nft", "--version"], capture_output=True, text=True, check=False).stdout)


def nft_version(answer: str) -> Finding:
    """Judge what `nft --version` printed."""
    version = parse_version(answer)
    oldest = ".".join(map(str, OLDEST))
    if not version:
        words = f"nft answers {quoted(answer.strip(), 60)} to --version"
        return failed("nft", words, f"install nftables {oldest} or later")
    if version < OLDEST:
        return failed("nft", f"nft is version {'.'.join(map(str, version))}", f"install nftables {oldest} or later")
    return ok("nft", f"version {'.'.join(map(str, version))}")


async def rules(*, doors: bool) -> Finding:
    """Let nft and the kernel check our rules without applying them; with `doors` also those of doors."""
    for name, text in samples():
        try:
            await Nft().dry_run(identity.HOST, text)
        except MeshboxError as error:
            return failed(
                "kernel", f"the {name} are refused: {error}", "use a kernel with nf_tables, nf_nat and nft_reject"
            )
    taken = "nf_tables takes the rules of workloads and of the host"
    try:
        if doors:
            await Nft().dry_run(identity.HOST, door_sample())
    except MeshboxError as error:
        return warning(
            "kernel",
            f"{taken}, but not those of doors into containers, whose connections go the longer way: {error}",
            "use a kernel with nft_socket and nft_nat, or set doors = false",
        )
    try:
        await Nft().dry_run(identity.HOST, bridge_sample())
    except MeshboxError as error:
        return warning(
            "kernel",
            f"{taken}, but not those of bridges: a container with CAP_NET_RAW can call in the name of another one on"
            f" its bridge: {error}",
            "use a kernel with nf_tables_bridge, or drop NET_RAW from containers that you do not trust",
        )
    return ok("kernel", taken)


def sockets() -> list[Finding]:
    """Check whether the kernel says which ports have a program; where it does, there is nothing to tell."""
    missing = sorted(set(Protocol) - listening.answered())
    if not missing:
        return []
    dialled = "TCP ports are dialled to find out whether a program listens" if Protocol.TCP in missing else ""
    counted = "UDP ports count as soon as their container runs" if Protocol.UDP in missing else ""
    words = f"the kernel does not say who listens: {' and '.join(filter(None, (dialled, counted)))}"
    options = " and ".join(f"CONFIG_INET_{protocol.upper()}_DIAG" for protocol in missing)
    return [warning("sockets", words, f"use a kernel with {options}")]


def tracking(folder: Path = TRACKING) -> list[Finding]:
    """Check whether the kernel has room to track more connections, if it tracks any: the first limit that is met."""
    try:
        texts = ((folder / f"nf_conntrack_{name}").read_text(encoding="ascii") for name in ("count", "max"))
        count, most = (parse_number(text.strip(), 0, 2**32) for text in texts)
    except (OSError, ValueError, InputError):  # nothing is tracked, or it is not told
        return []
    words = (
        f"{count} connections are tracked, of {most} at most" if most else "any number of connections may be tracked"
    )
    if not most or (most >= FEW_TRACKED and count < NEARLY_FULL * most):
        return [ok("tracking", words)]
    wanted = max(4 * FEW_TRACKED, 2 * most)
    remedy = f"sysctl -w net.netfilter.nf_conntrack_max={wanted}, or connections beyond that are dropped"
    return [warning("tracking", words, remedy)]
