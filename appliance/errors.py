"""The kinds of error, named by what the caller can do about them.

Every message is one line that says where, what, and how to mend it.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from appliance.text import MOST_MESSAGE, MOST_SHOWN, plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


class MeshboxError(Exception):
    """Base of all errors that meshbox words itself; the text is meant for the user as it stands.

    `words` say where and what, `remedy` how to mend it; the text of the error is both, in one line. What does not print
    is taken out of both, as they often quote what others wrote.
    """

    def __init__(self, words: str, remedy: str = "") -> None:
        words, remedy = plain(words, MOST_MESSAGE), plain(remedy, MOST_MESSAGE)
        super().__init__(f"{words}: {remedy}" if remedy else words)
        self.words = words
        self.remedy = remedy


class InputError(MeshboxError):
    """What the user wrote cannot be accepted; nothing was changed. The command line exits 2."""


class HostError(MeshboxError):
    """The host cannot do it as it is now (no Docker, port taken, …). The command line exits 1."""


class RetryError(MeshboxError):
    """A passing fault at run time: logged once with its cause, counted, and tried again."""


class NotYetError(RetryError):
    """Something is missing that comes by itself as a rule: no fault until it has been awaited for its usual time.

    `wait` waits for it, within a limit of its own, and returns whether it is there; it may raise MeshboxError.
    """

    def __init__(self, words: str, wait: Callable[[], Awaitable[object]]) -> None:
        super().__init__(words)
        self.wait = wait


def cause(error: BaseException) -> str:
    """Return what went wrong in plain words of one line. An error that nobody has worded is named by its kind."""
    try:
        words = str(error) if isinstance(error, MeshboxError) else f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 — an error of others may fail at wording itself
        words = type(error).__name__
    return plain(words, MOST_MESSAGE)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean "x"?)`` for the known word nearest to `word`, or an empty string."""
    near = get_close_matches(word[:MOST_SHOWN], list(known), n=1)
    return f' (did you mean "{plain(near[0])}"?)' if near else ""
