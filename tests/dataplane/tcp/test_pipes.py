from __future__ import annotations

import fcntl
import os

import pytest
from tcpworld import open_descriptors

from appliance.dataplane.tcp.pipes import SPARE, PipePool

F_GETPIPE_SZ = 1032


def test_an_empty_pipe_is_lent_again() -> None:
    """Pipes are made once and go from stream to stream."""
    pool = PipePool()
    first = pool.take()
    assert first is not None
    assert pool.lent == 1
    pool.give(first)
    assert pool.take() is first
    pool.give(first)
    pool.close()


def test_a_pipe_with_bytes_in_it_is_never_lent_again() -> None:
    """What a broken pair left in its pipe reaches no other pair."""
    pool = PipePool()
    pipe = pool.take()
    assert pipe is not None
    pipe.held = os.write(pipe.write, b"secret")
    pool.give(pipe)
    assert pool.lent == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(pipe.read, 6)
    pool.close()


def test_only_so_many_spare_pipes_are_kept() -> None:
    """After a rush of streams the file descriptors go back."""
    pool = PipePool()
    before = open_descriptors()
    pipes = [pool.take() for _ in range(3 * SPARE)]
    for pipe in pipes:
        assert pipe is not None
        pool.give(pipe)
    assert open_descriptors() == before + 2 * SPARE
    pool.close()
    assert open_descriptors() == before


def test_pipes_are_as_large_as_the_kernel_allows() -> None:
    """Root gets 1 MiB; every user gets the default of 64 KiB at least."""
    pool = PipePool()
    pipe = pool.take()
    assert pipe is not None
    assert fcntl.fcntl(pipe.write, F_GETPIPE_SZ) >= 1 << 16
    pool.give(pipe)
    pool.close()


def test_no_file_descriptors_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told, instead of an error in the middle of a stream."""

    def none_left(flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", none_left)
    pool = PipePool()
    assert pool.take() is None
    assert pool.lent == 0
