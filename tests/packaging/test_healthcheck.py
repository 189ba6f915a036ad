"""The image's health check, run as Docker does: exit 0 only for an appliance that answers well and in time."""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent.parent / "packaging/healthcheck.py"


def check(run_dir):
    """Return the exit code and what it says."""
    command = ["/usr/bin/python3", "-IS", PROGRAM]
    env = {"MESHBOX_RUN_DIR": str(run_dir)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=20)
    return done.returncode, done.stderr


@contextmanager
def answering(path, answer):
    """Take one question at a socket and give an answer; None: take none."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve():
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1000).startswith(b"GET /v1/status HTTP/1.1\r\n")
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        if answer is not None:
            thread.start()
        yield
        if answer is not None:
            thread.join(10)


def test_healthy(tmp_path):
    """The appliance answers."""
    with answering(tmp_path / "admin.sock", b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n{}"):
        assert check(tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "HTTP/1.1 500"), (b"", "no answer"), (None, "timed out")],
    ids=["in trouble", "hangs up", "hangs"],
)
def test_unhealthy(tmp_path, answer, words):
    """It fails, hangs up, or is silent: exit 1, and one line names the socket and what came."""
    path = tmp_path / "admin.sock"
    with answering(path, answer):
        code, said = check(tmp_path)
    assert code == 1
    assert said.startswith(f"{path}: {words}")
    assert said.count("\n") == 1


def test_nobody_there(tmp_path):
    """Not started, or ended."""
    code, said = check(tmp_path)
    assert code == 1
    assert said == f"{tmp_path}/admin.sock: [Errno 2] No such file or directory\n"
