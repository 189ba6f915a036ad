"""Numbers that others wrote."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from foreign import HUGE, SCALARS, TEXTS, check_shown
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.errors import InputError
from appliance.model.numbers import check_number, check_time, parse_decimal, parse_number


@given(TEXTS | st.text("0123456789-+_. ٣²", max_size=30), st.integers(-9, 9), st.integers(10, 10**6))
@example(HUGE, 0, 9)
@example("٣", 0, 9)
@example("²", 0, 9)
@example("1_0", 0, 99)
@example(" 1", 0, 9)
@example("+1", 0, 9)
def test_text_is_a_number_within_bounds_or_refused(text, low, high):
    """There is no third way, and only plain digits count."""
    try:
        number = parse_number(text, low, high)
    except InputError as error:
        check_shown(error, 120)
    else:
        assert low <= number <= high
        assert text.lstrip("-").isascii()
        assert text.lstrip("-").isdecimal()


@pytest.mark.parametrize(
    ("text", "low", "high", "number"), [("0", 0, 9, 0), ("65535", 1, 65535, 65535), ("007", 0, 9, 7), ("-3", -5, 0, -3)]
)
def test_numbers(text, low, high, number):
    """Both bounds belong to the range."""
    assert parse_number(text, low, high) == number


def test_numbers_of_json():
    """True is no number there, nor is text; what Python cannot word is refused in words."""
    assert check_number(5, 1, 5) == 5
    for value in (True, "5", 5.0, None, 6, 10**5000):
        with pytest.raises(InputError, match="is not a whole number from 1 to 5"):
            check_number(value, 1, 5)


def test_decimals():
    """Neither infinite nor no number at all, nor in another script."""
    assert parse_decimal("1.5", 10) == 1.5
    for text in ("nan", "inf", "1e5", "10", "٣", "1.", "", HUGE, None):
        with pytest.raises(InputError, match="is not a number from 0 to below 10"):
            parse_decimal(text, 10)


@given(SCALARS)
@example(10**400)
@example(float("nan"))
@example(float("inf"))
def test_times(value):
    """A time is finite, and from 1970 on."""
    try:
        assert 0 <= check_time(value) <= 1e11
    except InputError as error:
        check_shown(error, 120)


ROOT = Path(__file__).parents[2] / "appliance"
NOT_FOREIGN = {
    "app/systemd.py": 2,  # what the service manager says; belongs to another part
    "app/worker.py": 1,  # an argument of our own
    "check/ports.py": 1,  # hexadecimal, which has no limit; a bad line is passed over
    "check/system.py": 1,  # hexadecimal
    "cli/tables.py": 1,  # a count of the appliance's own
    "dataplane/balance.py": 2,  # weights, which have bounds
    "dataplane/dns/resolver.py": 1,  # seconds
    "dataplane/sources.py": 1,  # an address
    "dataplane/loop/timerfd.py": 1,  # seconds
    "drivers/consul/transport.py": 1,  # our own wait
    "drivers/docker/types.py": 2,  # numbers, and an OverflowError is that entry's problem
    "drivers/local/statefile.py": 1,  # the time
    "drivers/netns/owner.py": 2,  # what the kernel says of a process
    "drivers/nft/helper_main.py": 1,  # the kernel's own list of our descriptors, in a process of its own
    "model/mac.py": 2,  # twelve hexadecimal digits; a number, made plain once more
    "model/numbers.py": 3,
    "model/sources.py": 2,  # addresses
    "plan/allocate.py": 5,  # addresses
    "render/ruleset.py": 20,  # numbers, made plain once more before nft reads them
    "render/zone.py": 3,  # three octets of digits at most
    "spec/fields.py": 2,  # a number, and the literal "inf"
}
"""How often each file may call int() or float(), and why what it passes there is not foreign text."""


def test_nobody_else_reads_numbers():
    """What others wrote is read by `model.numbers`, with bounds; a new int() or float() needs a reason here."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        count = sum(isinstance(c.func, ast.Name) and c.func.id in {"int", "float"} for c in calls)
        if count:
            found[str(path.relative_to(ROOT))] = count
    assert {name: count for name, count in found.items() if count > NOT_FOREIGN.get(name, 0)} == {}
