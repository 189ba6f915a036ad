"""Which container a namespace belongs to; tests/system/test_netns_real.py has processes in real namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from appliance.drivers.netns import identity, owner

ID = "0123456789abcdef" * 4


def test_the_latest_processes_come_first():
    """The process asked about has just been started; ids begin again at the bottom."""
    pids = owner._newest_first()
    assert os.getpid() in pids
    last = int(Path("/proc/loadavg").read_text().split()[-1])
    young = [pid for pid in pids if pid <= last]
    assert young == sorted(young, reverse=True)
    assert pids[: len(young)] == young


def test_a_file_that_is_no_namespace_has_no_owner(tmp_path):
    """Neither an ordinary file nor one that is gone."""
    (tmp_path / "file").touch()
    assert trio.run(owner.find_container, str(tmp_path / "file")) is None
    assert trio.run(owner.find_container, str(tmp_path / "none")) is None


def test_a_process_that_ends_meanwhile_is_passed_over(monkeypatch):
    """Processes come and go while /proc is read: one that is gone is no error."""
    monkeypatch.setattr(owner, "_newest_first", lambda: [1 << 30, os.getpid()])
    found = trio.run(owner.find_container, identity.HOST)
    own = Path("/proc/self/cgroup").read_text()
    assert found == (owner._CONTAINER_ID.findall(own) or [None])[-1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"0::/system.slice/docker-{ID}.scope", [ID]),
        (f"12:pids:/docker/{ID}", [ID]),
        (f"0::/docker/{'f' * 64}/docker/{ID}", ["f" * 64, ID]),
        ("0::/user.slice/session-1.scope", []),
        (f"0::/docker/{ID}0", []),
    ],
)
def test_a_container_is_named_by_64_hex_digits_of_its_control_group(line, found):
    """Under both kinds of hierarchy; a longer number is no container. The innermost container is the owner."""
    assert owner._CONTAINER_ID.findall(line) == found
