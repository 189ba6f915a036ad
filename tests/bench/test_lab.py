from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench import lab
from bench.errors import BenchError
from bench.lab import CLIENT, Lab, enter, run


def test_a_program_returns_its_output_and_reads_what_it_is_given() -> None:
    """Rules of nft go in, JSON comes out."""
    assert run(["cat"], text="table") == "table"


def test_a_program_that_hangs_is_ended() -> None:
    """Or a run would last for ever."""
    with pytest.raises(BenchError, match="sleep 60 did not end within 0 s"):
        run(["sleep", "60"], timeout=0.1)


def test_everything_is_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The contender has the last CPU alone; client and server share the others, where there are others."""
    places = {}
    for cpus in ({0}, {0, 1}, {0, 1, 2, 3}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: cpus)
        it = Lab(tmp_path, seconds=1.0, quick=False)
        places[len(cpus)] = (it.client_cpu, it.server_cpu, it.proxy_cpu, it.proxy_cpus)
    assert places == {1: (0, 0, 0, "0"), 2: (0, 0, 1, "0,1"), 4: (0, 1, 3, "2,3")}
    assert enter(CLIENT, "2,3") == ["ip", "netns", "exec", CLIENT, "taskset", "-c", "2,3"]


def test_configurations_are_written_into_its_folder(tmp_path: Path) -> None:
    """As text or as bytes."""
    it = Lab(tmp_path, seconds=1.0, quick=False)
    assert Path(it.file("a.cfg", "global\n")).read_bytes() == b"global\n"
    assert Path(it.file("b.json", b"{}")).parent == tmp_path


def test_a_daemon_that_ends_while_it_is_measured_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its log says why; one that lives is stopped at the end of the block."""
    monkeypatch.setattr(lab, "enter", lambda *_: [])
    it = Lab(tmp_path, seconds=1.0, quick=False)
    with it.process("sound", CLIENT, [sys.executable, "-c", "input()"], cpu=0) as process:
        pass
    assert not Path(f"/proc/{process.pid}").exists()
    with (
        pytest.raises(BenchError, match=r"broken ended with 3: no port"),
        it.process("broken", CLIENT, ["sh", "-c", "echo no port; exit 3"], cpu=0) as process,
    ):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
