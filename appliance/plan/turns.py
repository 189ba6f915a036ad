"""How planning stays short: it works in turns, and it reuses what did not change.

Results never depend on either, only the time does. A long computation is a generator that yields about once a
millisecond; its driver lets other work run in between. Equal objects are replaced by those of the last pass,
because the next comparison tells identical objects apart at a glance.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_K = TypeVar("_K")
_T = TypeVar("_T")
_Item = TypeVar("_Item")

TURN = 16
"""Containers, or namespaces, that are handled in one turn."""

Turns: TypeAlias = Generator[None, None, _T]
"""A computation that can be interrupted wherever it yields. What it returns is its result."""


def at_once(work: Turns[_T]) -> _T:
    """Do all turns of a computation without a break and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: _T = done.value
            return result


def in_turns(function: Callable[[_Item], _T], items: Iterable[_Item]) -> Turns[list[_T]]:
    """Return what the function returns for each item, in order. A turn ends before every `TURN` items."""
    found = []
    for number, item in enumerate(items):
        if not number % TURN:
            yield
        found.append(function(item))
    return found


def reused(before: Mapping[_K, _T], after: Mapping[_K, _T]) -> dict[_K, _T]:
    """Return `after`, with the object from `before` wherever both have an equal one under the same key."""
    return {
        key: former if (former := before.get(key)) == value and former is not None else value
        for key, value in after.items()
    }
