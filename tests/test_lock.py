from __future__ import annotations

import os
import subprocess
import sys

import pytest

from appliance import lock
from appliance.errors import HostError
from appliance.lock import only_one

WORDS = rf"another meshbox \(pid {os.getpid()}\) runs on this host: stop it"


@pytest.fixture(autouse=True)
def own_host(monkeypatch):
    """An appliance may run on the machine that runs the tests."""
    monkeypatch.setattr(lock, "SOCKET", f"\0meshbox-test-{os.getpid()}")


def test_the_second_is_refused(tmp_path):
    """While one holds the lock another is told who; afterwards it is free again."""
    for _ in range(2):
        with only_one(tmp_path / "run"), pytest.raises(HostError, match=WORDS), only_one(tmp_path / "run"):
            pass


def test_the_second_is_refused_whatever_its_folder(tmp_path):
    """An image beside a package has a run_dir of its own, and the same network namespace; it is told who, each time."""
    for _ in range(2):
        with only_one(tmp_path / "run"):
            for attempt in range(200):
                with pytest.raises(HostError, match="another meshbox") as error, only_one(tmp_path / f"{attempt}"):
                    pass
                assert attempt or f"pid {os.getpid()}" in str(error.value)


def test_the_lock_ends_with_its_process(tmp_path):
    """However it ends, and although a child of it lives on."""
    code = (
        "import os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from appliance import lock\n"
        "lock.SOCKET = '\\0' + sys.argv[1]\n"
        "with lock.only_one(Path(sys.argv[2])):\n"
        "    child = subprocess.Popen(['cat'], stdin=0, stdout=subprocess.DEVNULL, close_fds=False)\n"
        "    print('held', flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, lock.SOCKET[1:], str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        holder.wait()
        with only_one(tmp_path / "b"):
            pass


@pytest.mark.parametrize(
    ("user", "remedy"), [(0, "let root write there, or set run_dir"), (1000, "run meshbox with sudo")]
)
def test_a_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch, user, remedy):
    """One line with the folder and what to do, which root is not told to become."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    (tmp_path / "file").touch()
    words = rf"cannot write .*/file/run: Not a directory: {remedy}"
    with pytest.raises(HostError, match=words), only_one(tmp_path / "file" / "run"):
        pass
