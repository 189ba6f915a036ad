"""A computer for tests of image and package: a Debian root that systemd boots in namespaces and a cgroup of its own."""

from __future__ import annotations

import os
import re
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from debian import runtime
from machine import Machine, Program, Switch, run, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

BOOT = """
echo $$ >"$1/cgroup.procs"
exec unshare --mount --propagation slave --pid --fork --kill-child --uts --ipc --cgroup sh -ec '
    mount --bind "$0" "$0"
    mount --rbind "$1" "$0/mnt"
    mount -t proc proc "$0/proc"
    mount -t sysfs -o ro sysfs "$0/sys"
    mount -t cgroup2 none "$0/sys/fs/cgroup"
    mount --rbind /dev "$0/dev"
    mount -t tmpfs tmpfs "$0/run"
    if [ -S "$1/docker.sock" ]; then
        ln -s /mnt/docker.sock "$0/run/docker.sock"
        ln -s /mnt/exec "$0/run/docker"
    fi
    mkdir "$0/former"
    cd "$0"
    pivot_root . former
    umount -l /former
    mount --make-rshared /
    container=test exec /lib/systemd/systemd --unit=multi-user.target
' "$0" "$2"
"""
"""Boots the root `$0` in the cgroup `$1`; where the machine at `$2` has an engine, it is where one is on Debian.

Mounts are passed on, as systemd has it on a computer: a namespace that Docker makes later is seen inside the units.
"""

SYSTEMD_WORK = re.compile(
    r"/(var/log/journal|var/lib/systemd/(catalog|timers|random-seed)|var/tmp/systemd-private|tmp/)"
)
"""What systemd itself writes while it runs."""
LIMITS = "[Service]\nLimitNOFILE=20000\nLimitNPROC=\nLimitCORE=\nOOMScoreAdjust=0\n"
"""For docker.service and containerd.service: what the test's computer may not do either."""


def drop_in(root: Path, unit: str, text: str) -> None:
    """Give a unit of a root, which is a service if it does not say so, settings of the test's own."""
    folder = root / f"etc/systemd/system/{unit if '.' in unit else f'{unit}.service'}.d"
    folder.mkdir(parents=True)
    (folder / "test.conf").write_text(text)


def without_limits(example: Path) -> str:
    """Return the example without limits of containers, which need a cgroup that is really the first."""
    return re.sub(r" +(cpu|memory)=\d+,\n", "", example.read_text())


class Booted:
    """Runs commands in what `booted` has booted."""

    def __init__(self, first: str) -> None:
        self.seen = f"/proc/{first}/root"
        """Its root directory as others see it."""
        self._enter = ("nsenter", f"--target={first}", "--mount", "--pid", "--net", "--uts", "--ipc")

    def __call__(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one; options are those of `machine.run`."""
        return run(*self._enter, *command, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, **options)


@contextmanager
def booted(root: Path, machine: Machine) -> Iterator[Booted]:
    """Boot a root file system in namespaces and a cgroup of its own; give what runs commands there."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    cgroup = Path(next(place for _, place, kind, *_ in mounts if kind == "cgroup2")) / f"meshbox-test-{os.getpid()}"
    cgroup.mkdir()
    program = Program(machine.netns, ("sh", "-ec", BOOT, root, cgroup, machine.root), machine.root / "systemd.log")
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    try:
        inside = Booted(wait_until(lambda: children.read_text().split(), "systemd is started")[0])
        up = {"running", "degraded"}  # the latter, since the test's computer refuses some of systemd's own units
        state = ("systemctl", "is-system-running")
        wait_until(lambda: inside(*state, check=False).stdout.strip() in up, "it is booted", seconds=60)
        yield inside
    finally:
        program.stop(signal.SIGKILL)
        for folder in sorted((cgroup, *(path for path in cgroup.rglob("*") if path.is_dir())), reverse=True):
            wait_until(lambda folder=folder: _removed(folder), f"{folder} is empty")


def _removed(folder: Path) -> bool:
    """Remove a cgroup, unless something in it is still ending."""
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


class Computer(Machine):
    """A computer that systemd runs, with a root file system of its own and nothing on it yet.

    Docker's units find what they need there to run on the test's computer, once they are installed.
    """

    def __init__(self, switch: Switch, number: int, files: Path) -> None:
        super().__init__(switch, number)
        self._files = files
        drop_in(files, "docker", LIMITS)
        drop_in(files, "containerd", LIMITS)
        drop_in(files, "docker.socket", "[Socket]\nListenStream=/mnt/docker.sock\n")  # where the test reaches it
        (files / "etc/docker").mkdir()
        engine = {"runtimes": {"tests": {"path": "/mnt/runtime"}}, "default-runtime": "tests"}
        (files / "etc/docker/daemon.json").write_bytes(orjson.dumps(engine))

    def start_docker(self) -> None:
        """Boot; an engine is not there before it is installed."""
        runtime(self.root)
        self._booted = booted(self._files, self)
        self.inside = self._booted.__enter__()

    def stop_docker(self) -> None:
        """End all of its processes."""
        self._booted.__exit__(None, None, None)

    def _fill(self) -> None:
        pass  # later

    def _remove_containers(self) -> None:
        pass  # they end with it

    def exec_in(self, container: str, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the test's programs in a container's network namespace."""
        path = self.inspect(container)["NetworkSettings"]["SandboxKey"].replace("/var/run/", "/run/")
        return run("nsenter", f"--net={self.inside.seen}{path}", *command, check=check)
