"""How the appliance logs: key/value on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
import structlog

from appliance.text import MOST_MESSAGE, plain, plain_lines, plain_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

log = structlog.get_logger()

REPEATS = 3
"""How often the same line is written within WINDOW; what flaps would fill the disk otherwise."""
WINDOW = 60.0
"""Seconds."""
PATIENCE = 50
"""Milliseconds that a line may wait for whoever reads the log, once; then lines are left out until there is room."""
MOST_LINES = 1000
"""Different lines that are remembered; beyond that, those whose window is over are forgotten."""


def configure(*, level: str = "info", form: str = "auto") -> None:
    """Send logs to standard error. `form` is `text`, `json`, or `auto`: text on a terminal, JSON elsewhere.

    What libraries say through Python's own logging comes in the same form, from level `warning` on.
    """
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    number = logging.getLevelName(level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        make_plain,
        Repeats(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if text
            else structlog.processors.JSONRenderer(
                serializer=lambda value, **_: orjson.dumps(value, default=str).decode()
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(LogStream(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Libraries()], level=max(number, logging.WARNING), force=True)


def make_plain(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Take out of a line what does not print: names and messages of others steer no terminal that shows the log."""
    of_many_lines = {"exception", "stack", *(["event"] if "logger" in event else [])}  # a library's own words too
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = plain_lines(value) if key in of_many_lines else plain(value, MOST_MESSAGE)
        elif isinstance(value, list | tuple | dict):
            event[key] = plain_tree(value)
        elif isinstance(value, BaseException):
            event[key] = plain(str(value), MOST_MESSAGE)
    return event


class LogStream:
    """Standard error for one line at a time, which neither blocks for long nor fails.

    Whoever reads it may stop reading, or end: a full pipe would hold up all traffic of this process otherwise. Lines
    for which there is no room are left out, and the next one that is written comes after a line that counts them.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._line = ""
        self._lost = 0

    def write(self, text: str) -> None:
        """Add to the line."""
        self._line += text

    def flush(self) -> None:
        """Write the line."""
        line, self._line = self._line, ""
        try:
            descriptor = self._file.fileno()
        except (AttributeError, OSError, ValueError):  # closed, or no file at all, as in tests
            with suppress(OSError, ValueError):
                self._file.write(line)
            return
        said = f"\nmeshbox: {self._lost} lines of the log are lost: nobody read it\n" if self._lost else ""
        try:
            self._lost = self._lost + 1 if not _written(descriptor, said + line, not self._lost) else 0
        except OSError:  # nobody can read it any more
            self._lost += 1


def _written(descriptor: int, text: str, patient: bool) -> bool:  # noqa: FBT001 — a positional flag of one caller
    """Write a text as far as there is room; return whether there was room for all of it. Raises OSError."""
    data = text.encode(errors="replace")
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    while data:
        if not room.poll(PATIENCE if patient else 0):
            return False
        data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
    return True


class _Libraries(logging.Handler):
    """Says what libraries log as this program says its own."""

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


@dataclass(slots=True)
class _Line:
    """When the window of a line began, how often it was written in it, and how often it was not."""

    began: float
    written: int = 0
    left_out: int = 0


class Repeats:
    """A processor that leaves out the same line after it was written REPEATS times within WINDOW, and counts it.

    The next one that is written says how many were not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, _Line] = {}

    def __call__(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Return the line. Raises DropEvent to leave it out."""
        now = self._clock()
        key = repr(sorted(event.items(), key=lambda item: item[0]))
        line = self._lines.get(key)
        if line is None or now - line.began >= WINDOW:
            left_out = line.left_out if line is not None else 0
            line = self._lines[key] = _Line(now)
            if left_out:
                event["left_out"] = left_out
        if line.written == REPEATS:
            line.left_out += 1
            raise structlog.DropEvent
        line.written += 1
        if len(self._lines) > MOST_LINES:
            self._lines = {k: kept for k, kept in self._lines.items() if now - kept.began < WINDOW}
        return event
