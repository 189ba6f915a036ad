"""Fixtures for drivers: a real Consul, or a clock that jumps, for those that need one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio.testing

from tests.realconsul import ConsulAgent, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Time that passes only while nothing can run."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
def consul_agent(tmp_path) -> Iterator[ConsulAgent]:
    """A Consul server of its own with default limits."""
    agent = ConsulAgent(tmp_path / "consul", base_port=free_ports(3))
    try:
        yield agent.start()
    finally:
        agent.stop()
