"""Where paths lead: links are followed as the kernel follows them, within the root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from appliance.drivers.host import paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's files, with links among them."""
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/out").symlink_to("/etc")
    (tmp_path / "data/up").symlink_to("../../../secret")
    (tmp_path / "data/near").symlink_to("deep")
    (tmp_path / "store").symlink_to("data/near")
    (tmp_path / "round").symlink_to("round")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/data/deep", "/data/deep"),
        ("//data/./deep/", "/data/deep"),
        ("/data/out/passwd", "/etc/passwd"),
        ("/data/up", "/secret"),
        ("/store/x", "/data/deep/x"),
        ("/nothing/here", "/nothing/here"),
        ("/data/deep/../..", "/"),
        ("/", "/"),
    ],
)
def test_where_it_leads(root: Path, path: str, real: str) -> None:
    """Also out of the folder in which it begins, never out of the root; what is missing is taken as it is written."""
    assert paths.resolve(path, str(root)) == real


def test_links_in_a_circle(root: Path) -> None:
    """They end as in the kernel."""
    with pytest.raises(OSError, match="symbolic links"):
        paths.resolve("/round/x", str(root))


def test_whose_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's, also from the image."""
    assert paths.host_root() == "/"
    (tmp_path / "mark").touch()
    monkeypatch.setattr("appliance.image.IMAGE_MARK", tmp_path / "mark")
    assert paths.host_root() == "/proc/1/root"


def test_followed_beside_other_work() -> None:
    """The host's own files, in a thread."""
    assert trio.run(paths.follow, "/proc/self/../self/ns") == f"/proc/{os.getpid()}/ns"
