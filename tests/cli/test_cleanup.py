from __future__ import annotations

import os
import re

from appliance import lock
from appliance.lock import only_one


def test_refuses_while_an_appliance_runs(meshbox, tmp_path, monkeypatch):
    """An appliance that holds the lock keeps its rules; the one line names it."""
    monkeypatch.setattr(lock, "GUARD", ("127.66.0.2", os.getpid() % 64000 + 1024))
    monkeypatch.setattr(lock, "SOCKET", f"\0meshbox-test-{os.getpid()}")  # one may run on this very machine
    with only_one(tmp_path):
        said = meshbox("cleanup")
    assert said.code == 1
    assert said.out == ""
    assert re.fullmatch(
        rf"meshbox: another meshbox \(pid {os.getpid()}\) runs on this host: stop it first; .*\n", said.err
    )
    assert (tmp_path / "lock").exists()
