"""How starts are counted; tests/system/test_first_instruction.py has real ones."""

from __future__ import annotations

import pytest

from appliance.drivers.docker.punctuality import Punctuality
from appliance.drivers.netns.owner import Process
from appliance.model.network import NetnsId

ONE, OTHER = NetnsId(device=4, inode=1), NetnsId(device=4, inode=2)
INIT, PROGRAM = Process(10, 1), Process(11, 1)


@pytest.fixture
def starts():
    """Two starts: of one the program has not begun when it is looked at, of the other it has."""
    made = Punctuality(runs_program=lambda process: process == PROGRAM)
    made.await_rules(ONE, "a" * 64, INIT)
    made.await_rules(OTHER, "b" * 64, PROGRAM)
    return made


def test_rules_before_the_program_are_in_time(starts):
    """Those behind it are late, and each start counts once."""
    for _ in range(2):
        starts.rules_in_place(ONE)
        starts.rules_in_place(OTHER)
        starts.rules_in_place(NetnsId(device=4, inode=3))
    assert (starts.in_time, starts.late) == (1, 1)


def test_what_cannot_be_told_is_late(starts):
    """As where the host's processes cannot be seen, or the container has ended before it had rules."""
    starts.await_rules(ONE, "a" * 64, None)
    starts.rules_in_place(ONE)
    starts.ended("b" * 64)
    assert (starts.in_time, starts.late) == (0, 2)


def test_what_was_no_start_does_not_count(starts):
    """A start that came to nothing, or a container that turns out to be none of the mesh's."""
    starts.came_to_nothing("a" * 64)
    starts.came_to_nothing("c" * 64)
    starts.rules_in_place(ONE)
    starts.ended("a" * 64)
    assert (starts.in_time, starts.late) == (0, 0)
