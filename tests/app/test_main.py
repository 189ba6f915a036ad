"""How an appliance starts, and how it says that it cannot."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from appliance.app import main
from appliance.config.options import load
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
