"""Turns of askers whose questions take long: one question of each, again and again.

What has to be read, looked up in the zone or sent upstream takes ten to a hundred times as long as an answer from the
table. One asker with 10,000 such questions a second would keep the others waiting. So they are queued by asker, and a
few are answered before all other work of the loop has its turn. An asker whose queue is full loses its own questions.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

AT_A_TIME: Final = 4
"""Questions answered in a row: about half a millisecond."""
MOST_WAITING: Final = 512
"""Questions of one asker by UDP that wait: programs that resolve hundreds of names at once are served whole."""


class Turns:
    """The questions that wait, by asker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, deque[Callable[[], None]]] = {}
        """By asker, the one whose turn is next first."""
        self._closed = False

    def __bool__(self) -> bool:
        """Whether any question waits."""
        return bool(self._waiting)

    def add(self, asker: str, answer: Callable[[], None], *, bounded: bool = True) -> bool:
        """Call `answer` when it is this asker's turn; return False, and never call it, if too many of its wait.

        What is not `bounded` always waits: something else limits its number.
        """
        queue = self._waiting.get(asker)
        if queue is None:
            if not self._waiting:
                self._loop.call_soon(self._serve)
            self._waiting[asker] = deque((answer,))
            return True
        if bounded and len(queue) >= MOST_WAITING:
            return False
        queue.append(answer)
        return True

    def close(self) -> None:
        """Forget all questions."""
        self._closed = True
        self._waiting.clear()

    def _serve(self) -> None:
        for _ in range(AT_A_TIME):
            if not self._waiting:
                return
            asker = next(iter(self._waiting))
            queue = self._waiting.pop(asker)
            answer = queue.popleft()
            if queue:
                self._waiting[asker] = queue
            answer()
        if self._waiting and not self._closed:
            self._loop.call_soon(self._serve)
