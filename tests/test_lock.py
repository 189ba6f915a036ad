from __future__ import annotations

import os

import pytest

from appliance.errors import HostError
from appliance.lock import only_one


def test_the_second_is_refused(tmp_path):
    """While one holds the lock another is told who; afterwards it is free again."""
    words = rf"another meshbox \(pid {os.getpid()}\) runs on this host: stop it"
    for _ in range(2):
        with only_one(tmp_path / "run"), pytest.raises(HostError, match=words), only_one(tmp_path / "run"):
            pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    """One line with the folder and what to do."""
    (tmp_path / "file").touch()
    words = r"cannot write .*/file/run: Not a directory; run meshbox as root"
    with pytest.raises(HostError, match=words), only_one(tmp_path / "file" / "run"):
        pass
