from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress

import pytest

from appliance import lock
from appliance.errors import HostError
from appliance.lock import only_one

WORDS = rf"another meshbox \(pid {os.getpid()}\) runs on this host: stop it"


@pytest.fixture(autouse=True)
def own_host(monkeypatch):
    """An appliance may run on the machine that runs the tests."""
    monkeypatch.setattr(lock, "SOCKET", f"\0meshbox-test-{os.getpid()}")
    monkeypatch.setattr(lock, "GUARD", ("127.66.0.2", os.getpid() % 64000 + 1024))


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
        "lock.SOCKET, lock.GUARD = '\\0' + sys.argv[1], ('127.66.0.2', int(sys.argv[3]))\n"
        "with lock.only_one(Path(sys.argv[2])):\n"
        "    child = subprocess.Popen(['cat'], stdin=0, stdout=subprocess.DEVNULL, close_fds=False)\n"
        "    print('held', flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, lock.SOCKET[1:], str(tmp_path / "a"), str(lock.GUARD[1])]
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


@contextmanager
def squatter(*, listens=True, user=65534):
    """Another user's process that has taken the name."""
    code = (
        "import os, socket, sys\n"
        "os.setuid(int(sys.argv[2]))\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "sock.bind('\\0' + sys.argv[1])\n"
        "sys.argv[3:] and sock.listen(4)\n"
        "print(os.getpid(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, lock.SOCKET[1:], str(user), *(["listen"] if listens else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.mark.system
def test_the_name_is_believed_of_root_alone(tmp_path):
    """Another user that has taken it is named, and keeps nobody from starting."""
    with squatter() as pid, only_one(tmp_path / "run"):
        warning = lock.squatted()
        assert warning.startswith(f"process {pid} of user 65534 has taken the name of this host's lock")
        assert "end that process" in warning
        assert lock.held(tmp_path / "run")
    assert not lock.held(tmp_path / "run")
    with only_one(tmp_path / "run"):
        assert not lock.squatted()
        assert lock.held(tmp_path / "run")


@pytest.mark.system
def test_the_name_is_not_believed_of_one_who_does_not_say_who_it_is(tmp_path):
    """The kernel names listeners with room in their queue only."""
    with squatter(listens=False), only_one(tmp_path / "run"):
        assert "has taken the name" in lock.squatted()
    with squatter(), ExitStack() as queue:
        for _ in range(9):
            asker = queue.enter_context(socket.socket(socket.AF_UNIX))
            asker.setblocking(False)
            with suppress(OSError):
                asker.connect(lock.SOCKET)
        with only_one(tmp_path / "run"):
            assert "has taken the name" in lock.squatted()


@pytest.mark.system
@pytest.mark.parametrize("listens", [True, False])
def test_the_second_is_refused_while_another_user_has_the_name(tmp_path, listens):
    """Whatever its folder, and also after that user has let go of the name."""
    with ExitStack() as first:
        with squatter(listens=listens):
            first.enter_context(only_one(tmp_path / "a"))
            with pytest.raises(HostError, match="another meshbox"), only_one(tmp_path / "b"):
                pass
            with pytest.raises(HostError, match=f"another meshbox .pid {os.getpid()}"), only_one(tmp_path / "a"):
                pass
        with pytest.raises(HostError, match="another meshbox"), only_one(tmp_path / "b"):
            pass
    with only_one(tmp_path / "b"):
        pass


def test_a_port_of_others_is_not_the_guard(tmp_path):
    """A program that listens at that port of all addresses is no appliance."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", lock.GUARD[1]))
        with only_one(tmp_path / "run"):
            pass


def test_the_lock_file_is_no_link(tmp_path):
    """What a link leads to would be emptied."""
    (tmp_path / "precious").write_text("content")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(HostError, match=r"lock is a symbolic link: remove it: rm "), only_one(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "content"


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    """One line says what to do."""
    tmp_path.chmod(0o777)
    with pytest.raises(HostError, match=rf"{tmp_path} can be written by other users: chmod go-w"), only_one(tmp_path):
        pass
