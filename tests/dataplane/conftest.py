"""What `make unit-compiled` needs: the same tests, of what is compiled."""

from __future__ import annotations

import os

import pytest

from appliance.dataplane import access
from appliance.dataplane.tcp import relay
from appliance.dataplane.udp import client, listener


@pytest.fixture(scope="session", autouse=True)
def compiled_if_asked_for() -> None:
    """With build/compiled before the sources they are not what is tested."""
    asked_for = os.environ.get("PYTHONPATH", "").endswith("/build/compiled")
    for module in (access, relay, client, listener):
        assert module.__file__.endswith(".so") == asked_for
