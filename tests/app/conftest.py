"""The parts of an appliance that was made and never started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uvloop

from appliance.app.parts import Parts
from appliance.config.options import load
from appliance.drivers.docker.client import Docker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    """Of a machine with Docker, whose files would be in a folder of the test's."""
    config = load(
        flags={
            "state_dir": str(tmp_path / "state"),
            "run_dir": str(tmp_path / "run"),
            "docker_socket": str(tmp_path / "docker.sock"),
            "netns_dir": str(tmp_path / "netns"),
        }
    )
    loop = uvloop.new_event_loop()
    made = Parts(config, loop, Docker(config.docker_socket))
    yield made
    made.plane.close()
    loop.close()
