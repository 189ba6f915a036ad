"""Looking again for agents that are taken for failed."""

from __future__ import annotations

import trio
import trio.testing

from appliance.drivers.consul.rejoin import AT_ONCE, PERIOD, rejoin
from appliance.drivers.consul.staleness import Staleness
from appliance.errors import RetryError


class Api:
    """Consul with five failed agents; joining takes for ever, or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.joined: list[str] = []

    async def failed_agents(self) -> list[str]:
        self.asked += 1
        if self.asked == 1:
            raise RetryError("no permission")
        return [f"10.0.0.{number}:8301" for number in range(5)]

    async def join(self, address: str) -> None:
        self.joined.append(address)
        if len(self.joined) % 2:
            raise RetryError("no answer")
        await trio.sleep_forever()


def test_looks_for_a_few_while_something_is_held() -> None:
    """All is well: nothing is asked. Something is held: some failed agents each time, whatever became of the last."""
    api = Api()

    async def main() -> None:
        staleness = Staleness(lambda: 1.0, lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rejoin, api, staleness)
            await trio.sleep(10 * PERIOD)
            assert api.asked == 0
            staleness.failed("specs", "no leader")
            await trio.sleep(10 * PERIOD)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert api.asked >= 4
    assert len(api.joined) == AT_ONCE * (api.asked - 1)
    assert len(set(api.joined)) > AT_ONCE
