"""Files of our own: no link is followed, and folders that others can change are refused."""

from __future__ import annotations

import os

import pytest

from appliance import files
from appliance.files import UnsafeError


def test_a_file_is_replaced_as_a_whole(tmp_path):
    """The file is the old one or the new one; a failed write leaves the old, and nobody else may read it."""
    path = tmp_path / "state.json"
    files.replace(path, b"old")
    files.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "state.json.new").mkdir()
    with pytest.raises(OSError):
        files.replace(path, b"newer")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "left over"])
def test_what_stands_in_the_way_of_a_new_file_is_not_written(tmp_path, kind):
    """A link, a pipe, or what a crash has left behind: it is removed."""
    precious, new = tmp_path / "precious", tmp_path / "file.new"
    precious.write_text("content")
    if kind == "pipe":
        os.mkfifo(new)
    elif kind == "left over":
        new.write_text("half")
        os.link(new, tmp_path / "other")
    else:
        new.symlink_to(precious if kind == "link" else tmp_path / "nothing")
    files.replace(tmp_path / "file", b"ours")
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert not (tmp_path / "file").is_symlink()
    assert precious.read_text() == "content"
    assert not (tmp_path / "nothing").exists()
    assert kind != "left over" or (tmp_path / "other").read_text() == "half"


def test_a_link_is_not_read(tmp_path):
    """Nor a pipe, which would be waited for."""
    (tmp_path / "precious").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(UnsafeError, match=r"is a symbolic link; remove it: rm .*/link"):
        files.read(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafeError, match="is not a regular file"):
        files.read(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "nothing")


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(tmp_path, mode):
    """They could put a file in place of ours."""
    files.replace(tmp_path / "file", b"ours")
    tmp_path.chmod(mode)
    for use in (lambda: files.read(tmp_path / "file"), lambda: files.replace(tmp_path / "file", b"new")):
        with pytest.raises(UnsafeError, match=rf"can be written by other users; chmod go-w {tmp_path}"):
            use()
    assert (tmp_path / "file").read_bytes() == b"ours"


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    """Its owner could do anything there."""
    found = tmp_path.stat()
    stranger = os.stat_result((*found[:4], 1234, *found[5:]))
    monkeypatch.setattr(os, "fstat", lambda _: stranger)
    with pytest.raises(UnsafeError, match=f"belongs to user 1234; give it to root: chown root {tmp_path}"):
        files.read(tmp_path / "file")


def test_the_way_to_the_folder_may_be_a_link(tmp_path):
    """It is the operator's, who moved the folder to another disk."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.replace(tmp_path / "link" / "file", b"ours")
    assert (tmp_path / "real" / "file").read_bytes() == b"ours"
