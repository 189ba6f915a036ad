"""The programs to compare with, from Debian, and the versions that were measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from bench.errors import BenchError
from bench.lab import PYTHON, run

PROGRAMS = {
    "haproxy": "haproxy",
    "nginx": "libnginx-mod-stream nginx",
    "dnsmasq": "dnsmasq-base",
    "unbound": "unbound",
    "wrk": "wrk",
    "iperf3": "iperf3",
    "sockperf": "sockperf",
    "dnsperf": "dnsperf",
    "redis-benchmark": "redis-tools",
    "redis-server": "redis-server",
    "docker-proxy": "docker.io",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "taskset": "util-linux",
    "gcc": "gcc python3-dev",
}
"""Program → Debian packages. None of their services is started: policy-rc.d forbids it while they are installed."""
VERSIONS = {
    "haproxy": ["haproxy", "-v"],
    "nginx": ["nginx", "-v"],
    "dnsmasq": ["dnsmasq", "--version"],
    "unbound": ["unbound", "-V"],
    "redis": ["redis-server", "--version"],
    "docker-proxy": ["dpkg-query", "-W", "-f", "${Version}", "docker.io"],
    "python": [PYTHON, "--version"],
    "uvloop": [PYTHON, "-c", "import uvloop; print(uvloop.__version__)"],
}


def install() -> None:
    """Install what is missing. Raises BenchError."""
    missing = [packages for program, packages in PROGRAMS.items() if not find(program)]
    if not missing:
        return
    packages = sorted({word for words in missing for word in words.split()})
    print("installing", *packages, flush=True)
    policy = Path("/usr/sbin/policy-rc.d")
    forbid = not policy.exists()
    if forbid:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (
            ["apt-get", "-qq", "update"],
            ["apt-get", "-qq", "-y", "--no-install-recommends", "install", *packages],
        ):
            done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
            if done.returncode:
                raise BenchError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    finally:
        if forbid:
            policy.unlink()


def find(program: str) -> str | None:
    """Return the path of a program, also from folders that only root has in its PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def machine() -> dict[str, str]:
    """Return what the figures depend on: CPU, kernel, versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "?")
    facts = {"cpu": f"{len(os.sched_getaffinity(0))} x {model}", "kernel": platform.release()}
    for name, command in VERSIONS.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            continue
        facts[name] = (done.stdout or done.stderr).strip().splitlines()[0] if done.stdout or done.stderr else "?"
    facts["commit"] = _commit()
    return facts


def _commit() -> str:
    """Return the commit that is measured; `?` without git, or in a copy that is no clone."""
    try:
        return run(["git", "describe", "--always", "--dirty"]).strip()
    except (BenchError, OSError):
        return "?"
