from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.process import Cpu, Process, process_cpu, resident

FAMILY = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'], stdin=0)"
"""A program with a child; neither ends before its input does."""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """One that waits for a signal."""
    it = Process("waiting", [sys.executable, "-c", "import signal; signal.pause()"], tmp_path / "log")
    yield it
    it.stop()


def test_cpu_time_is_divided_by_operations() -> None:
    """User and system time are the parts of the total; of no operation there is no figure."""
    cpu = Cpu(total=30.0, user=10.0)
    assert cpu.per(10, "CPU µs") == {"CPU µs": 3.0, "CPU µs (user)": 1.0, "CPU µs (system)": 2.0}
    assert cpu.per(0, "CPU µs") == {}


def test_a_process_is_looked_at_and_stopped(process: Process) -> None:
    """While it lives it has memory, and a check says nothing; stopped once, it may be stopped again."""
    process.check()
    assert process.pids() == [process.pid]
    assert process.resident() > 0
    process.stop()
    process.stop()
    with pytest.raises(BenchError, match=f"waiting ended with {-signal.SIGTERM}"):
        process.check()
    assert process.cpu() == Cpu()


def test_children_count() -> None:
    """A proxy's workers are its own."""
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as family:
        assert family.stdout
        assert family.stdout.readline() == "1\n"
        it = Process.__new__(Process)
        it.pid = family.pid
        assert len(it.pids()) == 2
        assert it.resident() > resident(family.pid)
        family.communicate("\n")


def test_cpu_time_is_that_of_the_block() -> None:
    """What was used before does not count."""
    it = Process.__new__(Process)
    it.pid = os.getpid()
    with it.used() as used:
        end = process_cpu(it.pid) + 0.02
        while process_cpu(it.pid) < end:
            pass
    assert 15_000 < used.total < it.cpu().total
    assert 0 <= used.user <= it.cpu().user


def test_a_port_on_which_nothing_will_listen_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its program ended, and its log says why."""
    nothing = subprocess.CompletedProcess([], 0, stdout=b"")
    monkeypatch.setattr("bench.process.subprocess.run", lambda *_, **__: nothing)
    it = Process("broken", ["sh", "-c", "echo in use; exit 1"], tmp_path / "log")
    with pytest.raises(BenchError, match="broken ended with 1: in use"):
        it.wait_ready("mbb-proxy", "tcp", "8080")
