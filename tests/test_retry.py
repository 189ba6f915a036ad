"""Delays between attempts."""

from __future__ import annotations

from appliance.retry import LAST, QUIET, Backoff, Schedule


def test_a_schedule_ends_with_its_last_delay():
    """One delay for each failure in a row; the last value repeats."""
    schedule = Schedule((0.2, 1.0, 5.0))
    assert [schedule.after(failures) for failures in (1, 2, 3, 4, 100)] == [0.2, 1.0, 5.0, 5.0, 5.0]


def test_delay_doubles_to_its_limit():
    """Each charge doubles the delay, from one second up to the longest."""
    backoff = Backoff()
    assert [backoff.charge("a", now) for now in range(0, 80, 10)] == [1, 2, 4, 8, 16, 32, LAST, LAST]


def test_what_is_left_runs_out():
    """A subject waits for its own delay only; others do not wait."""
    backoff = Backoff()
    backoff.charge("a", 10.0)
    assert backoff.left("a", 10.25) == 0.75
    assert backoff.left("a", 11.0) == 0
    assert backoff.left("b", 10.25) == 0


def test_quiet_subjects_start_afresh():
    """After a long time without a charge, or once it went well, the delay is the first one again."""
    backoff = Backoff()
    backoff.charge("a", 0.0)
    backoff.charge("a", 0.0)
    assert backoff.charge("a", QUIET + 1) == 1
    backoff.charge("a", QUIET + 1)
    backoff.forget("a")
    assert backoff.charge("a", QUIET + 1) == 1
