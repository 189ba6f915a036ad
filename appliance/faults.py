"""What is wrong at run time and is being retried: each fault is logged once, counted, and logged when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

log = structlog.get_logger()


@dataclass(slots=True)
class Fault:
    """A fault that is being retried. `count` is how often it has happened since it began."""

    what: str
    cause: str
    count: int = 1


class Faults:
    """Faults at run time: each is logged once with its cause, counted while it lasts, and logged when it is over."""

    def __init__(self) -> None:
        self.current: dict[Hashable, Fault] = {}
        self.total = 0

    def report(self, key: Hashable, what: str, cause: object, **fields: object) -> None:
        """Count a fault; log it if it is new or its cause has changed."""
        self.total += 1
        cause = str(cause)
        fault = self.current.get(key)
        if fault is None or fault.cause != cause:
            self.current[key] = Fault(what, cause)
            log.warning(what, cause=cause, **fields)
        else:
            fault.count += 1

    def over(self, key: Hashable) -> None:
        """Note that what was faulty works again."""
        fault = self.current.pop(key, None)
        if fault is not None:
            log.info("works again", what=fault.what, failures=fault.count)

    def cause(self, key: Hashable) -> str | None:
        """Return the cause of a fault that lasts; None while there is none."""
        fault = self.current.get(key)
        return fault.cause if fault is not None else None

    def drop(self, moot: Callable[[Hashable], bool]) -> None:
        """Forget faults whose subject no longer exists."""
        for key in [key for key in self.current if moot(key)]:
            del self.current[key]

    def list(self) -> Mapping[str, Fault]:
        """Return the faults that last, by readable key."""
        return {str(key): fault for key, fault in self.current.items()}
