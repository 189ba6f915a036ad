"""What the admin API gets from the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from appliance.api.metrics import COUNTERS
from appliance.app.control import RunningAppliance
from appliance.errors import RetryError
from appliance.model.facts import RunState, Workload
from appliance.model.names import Name
from appliance.spec.parse import parse_service

if TYPE_CHECKING:
    from appliance.app.parts import Parts

SERVICE = parse_service({"name": "orange", "containers": [{"name": "apple", "image": "hello"}]})


@pytest.fixture
def rings(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """How the bell has rung: whether urgently."""
    found: list[bool] = []
    monkeypatch.setattr(parts.reconciler, "ring", lambda *, urgent=False: found.append(urgent))
    return found


def test_a_deploy_is_stored_and_urgent(parts: Parts, rings: list[bool]) -> None:
    """The next pass sees it at once, and so it is with a removal."""
    appliance = RunningAppliance(parts)
    trio.run(appliance.deploy, [SERVICE])
    assert appliance.snapshot().specs == {"orange": SERVICE}
    assert rings[-1] is True
    assert trio.run(appliance.remove, "orange") is True
    assert "orange" in appliance.snapshot().tombstones
    assert trio.run(appliance.remove, "pear") is False


def test_what_cannot_be_stored_is_told(parts: Parts, rings: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller hears of it, and nothing is rung for it."""

    async def refuse(_: object) -> None:
        raise RetryError("no leader")

    monkeypatch.setattr(parts.registry, "put_spec", refuse)
    with pytest.raises(RetryError, match="no leader"):
        trio.run(RunningAppliance(parts).deploy, [SERVICE])
    assert rings == []


def test_every_counter_has_a_metric(parts: Parts) -> None:
    """A counter that nobody described would be missing from the page of metrics."""
    counters = trio.run(RunningAppliance(parts).counters)
    assert counters.keys() <= {counter.removeprefix("meshbox_").removesuffix("_total") for counter in COUNTERS}
    assert counters["passes"] == 0


def test_a_container_without_a_namespace_has_no_rules(parts: Parts) -> None:
    """Nothing is asked of nft for it."""
    ended = Workload(
        id="1" * 64, docker_name="apple", name=Name(container="apple", service="orange"), state=RunState.EXITED
    )
    assert trio.run(RunningAppliance(parts).rules, ended) is None
