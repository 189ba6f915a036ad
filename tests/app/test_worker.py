"""What the appliance starts of itself: a worker, and the helper around libnftables."""

from __future__ import annotations

import subprocess

import pytest

from appliance.app import worker
from appliance.drivers.nft import helper


@pytest.mark.parametrize(
    "command", [helper.HELPER, (*worker.command(level="info", form="text"), "no descriptor")], ids=["helper", "worker"]
)
def test_a_stranger_in_the_working_directory_is_not_run(tmp_path, command):
    """Root that calls meshbox in somebody else's folder runs nothing that lies there."""
    (tmp_path / "appliance").mkdir()
    (tmp_path / "appliance" / "__init__.py").write_text("print('stranger')")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=tmp_path, check=False)
    assert b"stranger" not in done.stdout
    assert b"fault" in done.stdout or b"'no descriptor'" in done.stderr, "it is ours that was started"
