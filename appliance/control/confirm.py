"""Tells the data plane that Docker's events were read (only where the kernel has no port claims).

It does so every EVERY seconds. After a standstill of this process it first asks Docker for the events up to now, and
waits until a pass has carried out what these mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.errors import RetryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from appliance.faults import Faults

EVERY = 0.1
"""Seconds between confirmations."""
STOOD_STILL = 0.4
"""Seconds between two confirmations after which this process stood still: less than what the data plane bears."""
PATIENCE = 2.0
"""Seconds that Docker and the pass may take. Traffic does not wait longer: nothing that hangs may end it."""


class Confirmer:
    """Confirms that what is known of containers is what Docker has done."""

    def __init__(
        self,
        *,
        confirm: Callable[[], None],
        catch_up: Callable[[], Awaitable[None]],
        settle: Callable[[], Awaitable[None]],
        faults: Faults,
    ) -> None:
        """`catch_up` reads Docker's events up to now and raises RetryError; `settle` waits for a pass after it."""
        self._confirm = confirm
        self._catch_up = catch_up
        self._settle = settle
        self._faults = faults

    async def run(self) -> None:
        """Confirm until cancelled."""
        self._confirm()
        last = trio.current_time()
        while True:
            await trio.sleep(EVERY)
            if trio.current_time() - last > STOOD_STILL:
                await self._catch_up_in_time()
            self._confirm()
            last = trio.current_time()

    async def _catch_up_in_time(self) -> None:
        words = "Docker's events could not be read after a standstill; what waits is judged by what is known"
        with trio.move_on_after(PATIENCE) as patience:
            try:
                await self._catch_up()
                await self._settle()
            except RetryError as error:
                self._faults.report("standstill", words, error)
                return
        if patience.cancelled_caught:
            self._faults.report("standstill", words, f"no answer in {PATIENCE:g} s")
        else:
            self._faults.over("standstill")
