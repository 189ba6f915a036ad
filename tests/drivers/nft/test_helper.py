"""The helper process kept at work, with a stand-in for libnftables' binding; tests/system has it with the real one."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import trio

from appliance.drivers.nft import helper
from appliance.drivers.nft.commits import OWN
from appliance.drivers.nft.helper import NftHelper
from appliance.errors import HostError, RetryError
from appliance.retry import Schedule

BINDING = """
import signal

class Nftables:
    def cmd(self, text):
        include, path, _ = text.split('"')
        with open(path, encoding="utf-8") as transaction:
            text = transaction.read()
        if text == "hang":
            signal.pause()
        return (0, text.upper(), "") if text != "bad" else (-1, "", "Error: bad")
"""


@pytest.fixture
def binding(tmp_path, monkeypatch):
    """Where the helper finds its binding."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(helper, "RESTART", Schedule((0.01,)))
    file = tmp_path / "nftables.py"
    file.write_text(BINDING)
    return file


def helped(scenario, **options) -> None:
    """Play a scenario with a helper running."""

    async def main() -> None:
        made = NftHelper(**options)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await nursery.start(made.run)
                await scenario(made)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_an_empty_transaction_needs_no_helper():
    """A delta between equal rulesets is empty."""
    assert trio.run(NftHelper().command, "") == ""


def test_without_a_helper_a_command_is_to_be_tried_again():
    """Between two lives of the helper."""
    with pytest.raises(RetryError, match="started again"):
        trio.run(NftHelper(timeout=0.01).command, "list ruleset\n")


def test_commands_are_answered_by_one_process_that_is_known_as_ours(binding):
    """A refusal is an error with nft's words and leaves the helper at work."""

    async def scenario(made: NftHelper) -> None:
        pid = made.pid
        assert pid is not None
        assert await made.command("one") == "ONE"
        with pytest.raises(RetryError, match="nft in the host's namespace: bad"):
            await made.command("bad")
        assert await made.command("x" * 200_000) == "X" * 200_000
        assert made.pid == pid
        assert pid in OWN
        assert made.restarts == 0

    helped(scenario)


def test_an_idle_helper_ends_and_the_next_command_starts_another(binding):
    """Nobody pays for a helper that is not needed."""

    async def scenario(made: NftHelper) -> None:
        while made.pid is not None:
            await trio.sleep(0.005)
        assert await made.command("one") == "ONE"
        assert made.restarts == 0

    helped(scenario, idle=0.05)


def test_a_helper_that_dies_costs_one_command(binding):
    """It is started again, on its schedule."""

    async def scenario(made: NftHelper) -> None:
        assert made.pid is not None
        os.kill(made.pid, signal.SIGKILL)
        with pytest.raises(RetryError, match="started again"):
            await made.command("one")
        while made.pid is None:
            await trio.sleep(0.005)
        assert await made.command("two") == "TWO"
        assert made.restarts == 1

    helped(scenario)


def test_a_helper_that_hangs_is_killed(binding):
    """A command that takes too long fails, and its answer never reaches the next command."""

    async def scenario(made: NftHelper) -> None:
        with pytest.raises(RetryError, match="died or hung"):
            await made.command("hang")
        while made.pid is None:
            await trio.sleep(0.005)
        assert await made.command("two") == "TWO"

    helped(scenario, timeout=1)


def test_a_missing_binding_is_every_commands_error(binding):
    """In the words of the helper's greeting; nothing is sent to it."""
    binding.write_text("raise ImportError('gone')")

    async def scenario(made: NftHelper) -> None:
        assert made.pid is None
        for ask in (made.command, made.dry_run):
            with pytest.raises(HostError, match="pip install pip-nftables"):
                await ask("one")

    helped(scenario)


def test_a_helper_that_cannot_be_started_says_so(monkeypatch):
    """In one line; its supervisor tries again."""
    monkeypatch.setattr(helper, "HELPER", ("/",))
    with pytest.raises(HostError, match="cannot start the helper around libnftables: Permission denied"):
        trio.run(NftHelper().run)
