"""Identifying namespaces by this process's own; tests/system/test_netns_real.py has the rest."""

from __future__ import annotations

from pathlib import Path

import trio

from appliance.drivers.netns import identity


def test_only_a_namespace_is_identified(tmp_path):
    """Docker's file is an ordinary one before the namespace is mounted on it, and gone afterwards."""
    (tmp_path / "file").touch()
    assert identity.identify(str(tmp_path / "file")) is None
    assert identity.identify(str(tmp_path / "none")) is None
    own = identity.identify(identity.HOST)
    assert own is not None
    assert own.inode == Path("/proc/self/ns/net").stat().st_ino


def test_waiting_for_a_namespace_ends(tmp_path):
    """When the file vanishes, and when it stays an ordinary one."""
    file = tmp_path / "file"
    file.touch()

    async def main():
        assert await identity.wait_namespace(str(file), timeout=0.02) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_remove, file)
            assert await identity.wait_namespace(str(file), timeout=60) is None

    trio.run(main)


async def _remove(file):
    await trio.lowlevel.checkpoint()
    file.unlink()
