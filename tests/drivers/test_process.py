"""Programs that are fed, waited for, and never left behind."""

from __future__ import annotations

import os

import pytest
import trio

from appliance.drivers.process import Finished, run
from appliance.errors import HostError, RetryError


def test_a_program_gets_its_input_and_leaves_code_output_and_error():
    """More than a pipe holds, in both directions."""
    data = b"x" * 1_000_000

    async def main() -> Finished:
        return await run(["sh", "-c", "cat; echo ' words ' >&2; exit 3"], stdin=data, timeout=10)

    assert trio.run(main) == Finished(3, data.decode(), "words")


def test_a_program_that_does_not_read_its_input_is_no_error():
    """Its exit code and its words say what was wrong."""

    async def main() -> Finished:
        return await run(["sh", "-c", "echo no >&2; exit 1"], stdin=b"x" * 1_000_000, timeout=10)

    assert trio.run(main) == Finished(1, "", "no")


def test_its_process_id_is_told_before_it_gets_its_input():
    """So that what it does with that input can be recognized."""
    told: list[int] = []

    async def main() -> Finished:
        return await run(["sh", "-c", "cat >/dev/null; echo $$"], stdin=b"x", timeout=10, began=told.append)

    assert trio.run(main).output == f"{told[0]}\n"


def test_messages_are_in_english():
    """What we read and pass on does not depend on the host's language."""

    async def main() -> Finished:
        return await run(["sh", "-c", "echo $LC_ALL"], timeout=10)

    assert trio.run(main).output == "C\n"


def test_a_program_that_hangs_is_killed():
    """The error names it; no process is left."""
    told: list[int] = []

    async def main() -> None:
        await run(["sleep", "60"], timeout=0.05, began=told.append)

    with pytest.raises(RetryError, match=r"sleep 60 did not end within 0\.05 s"):
        trio.run(main)
    with pytest.raises(ProcessLookupError):
        os.kill(told[0], 0)


def test_a_cancelled_program_is_killed():
    """The appliance ends at once, and leaves no process behind."""
    told: list[int] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            def stop(pid: int) -> None:
                told.append(pid)
                nursery.cancel_scope.cancel()

            await run(["sleep", "60"], timeout=60, began=stop)

    trio.run(main)
    with pytest.raises(ProcessLookupError):
        os.kill(told[0], 0)


@pytest.mark.parametrize(("program", "package"), [("nsenter", "util-linux"), ("nft", "nftables"), ("bogus", "bogus")])
def test_a_missing_program_says_what_to_install(monkeypatch, program, package):
    """In Debian's words."""
    monkeypatch.setenv("PATH", "/nonexistent")

    async def main() -> None:
        await run([program], timeout=10)

    with pytest.raises(HostError, match=f"{program} is not installed; apt-get install {package}"):
        trio.run(main)


def test_a_program_that_cannot_be_started_is_tried_again():
    """As when no descriptor or process is left."""

    async def main() -> None:
        with pytest.raises(RetryError, match="cannot start /: Permission denied"):
            await run(["/"], timeout=10)

    trio.run(main)
