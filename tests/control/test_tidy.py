"""The Docker network goes each time when nothing needs it any more."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from appliance.control.tidy import NetworkTidier
from appliance.errors import RetryError
from appliance.faults import Faults


class Owner:
    """Stands in for the deployer; each call is answered by the next entry."""

    def __init__(self, *answers: Exception | None) -> None:
        self._answers = list(answers)
        self.calls = 0

    async def tidy(self) -> bool:
        self.calls += 1
        answer = self._answers.pop(0)
        if answer is not None:
            raise answer
        return True


@pytest.fixture
def faults() -> Faults:
    """Those of the appliance."""
    return Faults()


def tidied(owner: Owner, faults: Faults, times: int) -> list[list[str]]:
    """Say so many times that it is unneeded; return the faults that last after each."""
    after = []

    async def main() -> None:
        tidier = NetworkTidier(owner, faults)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tidier.run)
            await trio.testing.wait_all_tasks_blocked()
            assert owner.calls == 0
            for _ in range(times):
                tidier.unneeded()
                await trio.testing.wait_all_tasks_blocked()
                after.append(list(faults.list()))
            nursery.cancel_scope.cancel()

    trio.run(main)
    return after


def test_it_goes_each_time(faults: Faults) -> None:
    """Not before anybody says so, and again when it was needed in between."""
    owner = Owner(None, None)
    assert tidied(owner, faults, 2) == [[], []]
    assert owner.calls == 2


def test_what_fails_is_a_fault_until_it_works(faults: Faults) -> None:
    """The next pass asks again."""
    owner = Owner(RetryError("Docker is away"), None)
    assert tidied(owner, faults, 2) == [["tidy"], []]
