"""Inspects on demand: fresh answers only, and no end of events costs no end of questions."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from appliance.drivers.docker.inspects import Inspects
from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Docker:
    """Counts what it is asked, and answers each time with the number of the question."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []
        self.taken: list[tuple[str, int]] = []
        self.failed: list[tuple[str, Exception]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.inspects = Inspects(self.ask, lambda container_id, error: self.failed.append((container_id, error)))

    async def ask(self, container_id: str) -> Callable[[], None]:
        self.asked.append((container_id, trio.current_time()))
        number = len(self.asked)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return lambda: self.taken.append((container_id, number))


@pytest.fixture
def docker() -> Docker:
    """One that answers at once."""
    return Docker()


def play(docker: Docker, clock: trio.testing.MockClock, scene: Callable[[], Awaitable[None]]) -> None:
    """Run `scene()` while inspects are made."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(docker.inspects.run, UNWATCHED)
            await scene()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


def test_an_answer_that_may_be_old_is_not_taken(autojump_clock, docker):
    """What happens while Docker answers is asked for once more, by one question however often it happens."""

    async def scene():
        docker.gate = trio.Event()
        docker.inspects.begin("a")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            docker.inspects.begin("a")
        docker.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert docker.taken == [("a", 2)]

    play(docker, autojump_clock, scene)


def test_one_that_went_while_it_was_inspected_is_asked_for_again(autojump_clock, docker):
    """The answer under way would bring it back."""

    async def scene():
        docker.gate = trio.Event()
        docker.inspects.begin("a")
        await trio.testing.wait_all_tasks_blocked()
        docker.inspects.forget("a")
        docker.inspects.forget("b")
        docker.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert docker.taken == [("a", 2)]

    play(docker, autojump_clock, scene)


def test_events_without_end_cost_two_questions_a_second(autojump_clock, docker):
    """Others are asked for at once meanwhile."""

    async def scene():
        for number in range(1000):
            docker.inspects.begin("a")
            docker.inspects.begin(f"b{number}")
            await trio.sleep(0.01)
        times = [when for container_id, when in docker.asked if container_id == "a"]
        assert [later - earlier for earlier, later in pairwise(times)][-5:] == pytest.approx([0.5] * 5, abs=0.02)
        assert len(docker.asked) - len(times) == 1000

    play(docker, autojump_clock, scene)


def test_what_was_cut_short_is_made_when_it_runs_again(autojump_clock, docker):
    """So is what was asked for while nothing ran."""

    async def main():
        docker.gate = trio.Event()
        docker.inspects.begin("a")
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                await nursery.start(docker.inspects.run, UNWATCHED)
        assert docker.taken == []
        docker.inspects.begin("b")
        docker.gate.set()
        async with trio.open_nursery() as nursery:
            await nursery.start(docker.inspects.run, UNWATCHED)
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
        assert sorted(container_id for container_id, _ in docker.taken) == ["a", "b"]

    trio.run(main, clock=autojump_clock)


def test_an_error_is_that_containers_problem(autojump_clock, docker):
    """It is told, and the next question is asked."""

    async def scene():
        docker.error = KeyError("what")
        docker.inspects.begin("a")
        await trio.testing.wait_all_tasks_blocked()
        assert docker.failed == [("a", docker.error)]
        docker.error = None
        docker.inspects.begin("a")
        await trio.testing.wait_all_tasks_blocked()
        assert docker.taken == [("a", 2)]

    play(docker, autojump_clock, scene)
