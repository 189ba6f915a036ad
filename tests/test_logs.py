"""Logs in both forms, and repeats that are left out."""

from __future__ import annotations

import io
import logging
import os
import re
import time

import orjson
import pytest
import structlog
import uvloop
from foreign import EVIL

from appliance import logs


def test_repeats_are_left_out_and_counted() -> None:
    """The same line three times a minute at most; the first of the next minute says how many were left out."""
    now = [0.0]
    repeats = logs.Repeats(lambda: now[0])

    def say(**fields):
        try:
            return repeats(None, "warning", {"event": "putting it back", **fields})
        except structlog.DropEvent:
            return None

    said = [say(netns="a") for _ in range(10)]
    assert [line is not None for line in said] == [True] * 3 + [False] * 7
    assert say(netns="b") == {"event": "putting it back", "netns": "b"}
    now[0] = 60.0
    assert say(netns="a") == {"event": "putting it back", "netns": "a", "left_out": 7}
    assert say(netns="a") == {"event": "putting it back", "netns": "a"}


def test_memory_of_repeats_is_bounded() -> None:
    """Lines that all differ are not remembered for ever."""
    now = [0.0]
    repeats = logs.Repeats(lambda: now[0])
    for number in range(3 * logs.MOST_LINES):
        now[0] += 1.0
        repeats(None, "info", {"event": str(number)})
    assert len(repeats._lines) <= logs.MOST_LINES + 1


@pytest.mark.parametrize(
    ("form", "terminal", "text"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("text", False, True),
        ("json", True, False),
    ],
)
def test_form(monkeypatch, form, terminal, text) -> None:
    """Key and value on a terminal, JSON elsewhere, unless the configuration says otherwise."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure(form=form)
    logs.log.warning("Docker is away", socket="/s")
    structlog.reset_defaults()
    line = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert line.count("\n") == 1
    if text:
        assert re.search(r"\[warning *\] Docker is away +socket=/s", line)
    else:
        assert orjson.loads(line).items() >= {"event": "Docker is away", "level": "warning", "socket": "/s"}.items()
    assert ("\x1b" in stream.getvalue()) == (text and terminal)


def fail() -> None:
    """Fail."""
    raise ValueError("broken")


def test_libraries_speak_as_the_appliance_does(lines) -> None:
    """What Python's own logging is told is one line of JSON each, with its traceback, and limited like any other."""
    for _ in range(5):
        try:
            fail()
        except ValueError:
            logging.getLogger("library").exception("cannot go on with %s", "this\nthat")
    logging.getLogger("library").info("well")
    said = lines()
    assert len(said) == logs.REPEATS
    assert said[0].items() >= {"event": "cannot go on with this\nthat", "level": "error", "logger": "library"}.items()
    assert said[0]["exception"].endswith("ValueError: broken")


def test_faults_of_callbacks_are_in_the_log(lines) -> None:
    """An exception in a callback of the data plane is a line like any other."""
    loop = uvloop.new_event_loop()
    loop.call_soon(fail)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    (line,) = lines()
    assert line["event"].startswith("Exception in callback <function fail")
    assert line["exception"].endswith("ValueError: broken")


def test_level_is_kept(lines) -> None:
    """Below the configured level nothing is written."""
    logs.configure(level="error", form="json")
    logs.log.warning("quiet")
    assert lines() == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_in_a_log_steers_a_terminal(monkeypatch, form) -> None:
    """Names and messages of others are written without what does not print, in whatever field they stand."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure(form=form)
    log = structlog.get_logger()
    log.warning("found", name=EVIL, names=[EVIL], by={EVIL: EVIL}, cause=ValueError(EVIL), bare="\x1b[2J")
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception(EVIL)
    text = stream.getvalue()
    assert "EVIL" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\\u001b" not in text
    structlog.reset_defaults()


def test_a_log_that_nobody_reads_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for which there is no room are left out, and counted once there is room; a reader that has gone is none."""
    out, into = os.pipe()
    with open(out, "rb", buffering=0) as reader, open(into, "w", encoding="utf-8") as writer:  # noqa: PTH123 — descriptors
        monkeypatch.setattr("sys.stderr", writer)
        logs.configure(form="json")
        log = structlog.get_logger()
        began = time.monotonic()
        for number in range(2000):
            log.warning("x" * 200, number=number)
        assert time.monotonic() - began < 2.0
        os.set_blocking(out, False)
        read = reader.read(1 << 20)
        log.warning("there is room again")
        told = reader.read(1 << 20).decode().splitlines()
        lost = int(re.search(r"meshbox: (\d+) lines of the log are lost", "\n".join(told))[1])
        assert lost + read.count(b'"level"') in {2000, 2001}, "at most one was cut in the middle"
        assert orjson.loads(told[-1])["event"] == "there is room again"
        reader.close()
        log.warning("nobody is there")


def test_a_closed_standard_error_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where whoever started the appliance has closed it."""
    with open(os.devnull, "w", encoding="utf-8") as closed:  # noqa: PTH123
        monkeypatch.setattr("sys.stderr", closed)
        logs.configure(form="json")
    structlog.get_logger().warning("nobody hears this")
