"""Checks as they are made inside the image."""

from __future__ import annotations

import pytest

from appliance.config.options import Config


@pytest.fixture
def image(monkeypatch, tmp_path):
    """Look as from inside the image."""
    mark = tmp_path / "healthcheck.py"
    mark.touch()
    monkeypatch.setattr("appliance.image.IMAGE_MARK", mark)
    return Config(netns_dir="/proc/1/root/run/docker/netns", state_dir=str(tmp_path))
