"""What can be said of namespaces without one; tests/system/test_netns_real.py has the rest."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from appliance.drivers.netns import identity as netns


def test_only_a_namespace_is_identified(tmp_path):
    """Docker's file is an ordinary one before the namespace is mounted on it, and gone afterwards."""
    (tmp_path / "file").touch()
    assert netns.identify(str(tmp_path / "file")) is None
    assert netns.identify(str(tmp_path / "none")) is None
    own = netns.identify(netns.HOST)
    assert own is not None
    assert own.inode == Path("/proc/self/ns/net").stat().st_ino


def test_waiting_for_a_namespace_ends(tmp_path):
    """When the file vanishes, and when it stays an ordinary one."""
    file = tmp_path / "file"
    file.touch()

    async def main():
        assert await netns.wait_namespace(str(file), timeout=0.02) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_remove, file)
            assert await netns.wait_namespace(str(file), timeout=60) is None

    trio.run(main)


async def _remove(file):
    await trio.lowlevel.checkpoint()
    file.unlink()


def test_processes_are_looked_at_from_the_latest_one_on():
    """The process asked about has just been started; ids begin again at the bottom."""
    pids = netns._newest_first()
    assert os.getpid() in pids
    last = int(Path("/proc/loadavg").read_text().split()[-1])
    young = [pid for pid in pids if pid <= last]
    assert young == sorted(young, reverse=True)
    assert pids[: len(young)] == young
