"""How an appliance starts, and how it says that it cannot."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import uvloop

from appliance.app import main
from appliance.app.parts import Parts
from appliance.app.systemd import Notifier
from appliance.config.options import load
from appliance.drivers.docker.client import Docker
from appliance.model.finding import failed

if TYPE_CHECKING:
    from pathlib import Path


def test_an_unfit_host_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing and how to mend it, exit code 1, and nothing was made."""

    async def examine(_: object) -> tuple[object, ...]:
        return (failed("Docker", "there is no engine", "start it"),)

    monkeypatch.setattr(main.host, "examine", examine)
    monkeypatch.setattr(main, "only_one", nullcontext)
    state = tmp_path / "state"
    assert main.run(load(flags={"state_dir": str(state), "run_dir": str(tmp_path / "run")})) == 1
    assert capsys.readouterr().err == "meshbox: there is no engine: start it\n"
    assert not state.exists()


@pytest.mark.parametrize("flags", [{}, {"registry": "consul"}, {"registry": "consul", "gateway": "yes"}])
def test_the_table_of_parts(tmp_path: Path, flags: dict[str, str]) -> None:
    """Each has a name of its own, by which faults, metrics and the admin API know it, and a bounded time."""
    config = load(flags={"state_dir": str(tmp_path), "run_dir": str(tmp_path), **flags})
    loop = uvloop.new_event_loop()
    parts = Parts(config, loop, Docker(config.docker_socket))
    listed = [part for stage in main.stages(parts, Notifier({})) for part in stage.parts]
    assert len({part.name for part in listed}) == len(listed)
    assert all(0 < part.silence <= 120 for part in listed)
    assert {"reconciler", "admin API", "nft helper"} <= {part.name for part in listed}
    assert ("docker events" in {part.name for part in listed}) is ("gateway" not in flags)
    assert ("consul heartbeat" in {part.name for part in listed}) is ("registry" in flags)
    parts.plane.close()
    loop.close()
