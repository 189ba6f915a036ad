"""Which container a namespace belongs to; tests/system/test_netns_real.py has processes in real namespaces."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import trio

from appliance.drivers.netns import identity, owner
from appliance.errors import RetryError

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
    assert trio.run(owner.find_owner, str(tmp_path / "file")) is None
    assert trio.run(owner.find_owner, str(tmp_path / "none")) is None


def test_a_process_that_ends_meanwhile_is_passed_over(monkeypatch):
    """Processes come and go while /proc is read: one that is gone is no error."""
    monkeypatch.setattr(owner, "_newest_first", lambda: [1 << 30, os.getpid()])
    found = trio.run(owner.find_owner, identity.HOST)
    own = Path("/proc/self/cgroup").read_text()
    assert (found and found.container) == (owner._CONTAINER_ID.findall(own) or [None])[-1]


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


def test_no_descriptor_is_left_for_proc(monkeypatch):
    """It is a passing fault of this one look, and not the end of whoever looks."""

    def refuse(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(RetryError, match="Too many open files"):
        trio.run(owner.find_owner, identity.HOST)


@pytest.mark.parametrize("text", ["", "self", "²", "٣", "1" * 5000, "-1", str(2**22 + 1)])
def test_what_is_no_process(text):
    """Only what the kernel may give out counts."""
    assert owner._pid(text) == 0


def test_a_process_has_run_its_program_once_it_has_executed_one():
    """A child that has not executed anything has not; that is not taken for granted of one that nobody sees."""
    read, write = os.pipe()
    executed, preparing = os.pipe()
    pid = os.fork()
    if pid == 0:  # as the runtime's: it prepares itself, and executes the program when it is told to
        try:
            os.read(read, 1)
            os.execvp("sleep", ("sleep", "60"))
        finally:
            os._exit(1)
    try:
        known = owner._stat(pid)
        assert known is not None
        assert not owner.runs_program(known[0])
        assert owner.runs_program(known[0]._replace(started=known[0].started - 1)), "its number was another's"
        os.close(preparing)
        os.write(write, b"x")
        assert os.read(executed, 1) == b"", "executing a program closes the child's end"
        assert owner.runs_program(known[0])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for descriptor in (read, write, executed):
            os.close(descriptor)
    assert owner.runs_program(known[0]), "it is gone"
