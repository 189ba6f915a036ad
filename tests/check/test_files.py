"""Files that the appliance needs: each finding names the file and what to do, and looking leaves no trace."""

from __future__ import annotations

import errno
import os

import pytest
import trio

from appliance import lock
from appliance.check import files
from appliance.config.options import Config
from appliance.drivers.local.statefile import SCHEMA
from appliance.drivers.netns import directory
from appliance.lock import only_one
from appliance.model.finding import Level


@pytest.mark.parametrize(
    ("content", "level", "words", "remedy"),
    [
        (None, Level.OK, "can be written", ""),
        (f'{{"schema": {SCHEMA}}}', Level.OK, "can be written", ""),
        (f'{{"schema": {SCHEMA + 1}}}', Level.FAILED, "newer meshbox", "install that version again"),
        ("{", Level.WARNING, "not JSON", "deploy again"),
    ],
)
def test_state(tmp_path, content, level, words, remedy) -> None:
    """A state of a newer version keeps the appliance from running; a damaged one does not."""
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    found = files.state(Config(state_dir=str(tmp_path)))
    assert found.level is level
    assert words in found.words
    assert remedy in found.remedy


def test_state_that_cannot_be_read(tmp_path) -> None:
    """The file is named."""
    (tmp_path / "state.json").mkdir()
    found = files.state(Config(state_dir=str(tmp_path)))
    assert found.level is Level.FAILED
    assert f"cannot read {tmp_path}/state.json" in found.words
    assert "owner" in found.remedy


def test_folders_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    """Without run_dir there is no socket; without state_dir nothing can be deployed. Neither is made by looking."""
    config = Config(state_dir=str(tmp_path / "a/b"), run_dir=str(tmp_path / "c/d"))
    assert {files.state(config).level, files.run_dir(config).level} == {Level.OK}
    assert list(tmp_path.iterdir()) == []
    asked = []
    monkeypatch.setattr(os, "access", lambda path, _: asked.append(path))
    assert files.state(config).level is Level.WARNING
    found = files.run_dir(config)
    assert found.level is Level.FAILED
    assert f"cannot write {tmp_path}/c/d" in found.words
    assert asked == [tmp_path, tmp_path]
    (tmp_path / "c").touch()
    assert files.run_dir(config).level is Level.FAILED


def test_lock(tmp_path, monkeypatch) -> None:
    """A process that holds the lock and does not answer is named; without a lock there is nothing to say."""
    monkeypatch.setattr(lock, "GUARD", ("127.66.0.2", os.getpid() % 64000 + 1024))
    monkeypatch.setattr(lock, "SOCKET", f"\0meshbox-test-{os.getpid()}")  # an appliance may run on this machine
    config = Config(run_dir=str(tmp_path / "run"))
    assert files.lock(config) == []
    assert not (tmp_path / "run").exists()
    with only_one(tmp_path / "run"):
        (found,) = files.lock(config)
    assert found.level is Level.FAILED
    assert f"(pid {os.getpid()}) runs on this host and does not answer on {tmp_path}/run/admin.sock" in found.words
    assert "look at its log" in found.remedy
    with only_one(tmp_path / "other"):
        assert len(files.lock(config)) == 1
    assert files.lock(config) == []


def test_watch(tmp_path, monkeypatch) -> None:
    """Where the kernel has no watch left, the setting to raise is named; a folder that is not there yet is no fault."""
    config = Config(netns_dir=str(tmp_path / "netns"))
    assert trio.run(files.watch, config).level is Level.OK

    def refuse(**_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(directory, "INotify", refuse)
    found = trio.run(files.watch, config)
    assert found.level is Level.FAILED
    assert "Too many open files" in found.words
    assert "raise fs.inotify.max_user_instances" in found.remedy
