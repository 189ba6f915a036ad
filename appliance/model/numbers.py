"""Numbers that others wrote. No other code turns foreign text into a number.

`int()` raises ValueError beyond 4,300 digits and takes "1_0", " 1" and digits of other scripts; `float()` takes "nan"
and "inf". A number that is too long for what it counts is refused here before any of that.
"""

from __future__ import annotations

import re

from appliance.errors import InputError
from appliance.text import quoted

MOST_DIGITS = 20
"""Digits of a number in text; 64 bits have 20."""
LATEST = 1e11
"""Seconds since the epoch: no clock shows the year 5138."""

_DIGITS = re.compile(rf"-?[0-9]{{1,{MOST_DIGITS}}}")
_DECIMAL = re.compile(rf"[0-9]{{1,{MOST_DIGITS}}}(\.[0-9]{{1,{MOST_DIGITS}}})?")


def parse_number(text: object, low: int, high: int) -> int:
    """Parse a whole number in decimal digits, within the bounds. Raises InputError."""
    if isinstance(text, str) and _DIGITS.fullmatch(text):
        number = int(text)
        if low <= number <= high:
            return number
    raise _out_of_bounds(text, low, high)


def check_number(value: object, low: int, high: int) -> int:
    """Accept a whole number that JSON or TOML holds as such, within the bounds. Raises InputError."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise _out_of_bounds(value, low, high)


def parse_decimal(text: object, high: float) -> float:
    """Parse a number from 0 to below `high` such as `1` or `0.25`. Raises InputError."""
    if isinstance(text, str) and _DECIMAL.fullmatch(text):
        number = float(text)
        if number < high:
            return number
    raise InputError(f"{quoted(text, 60)} is not a number from 0 to below {high:g}")


def check_time(value: object) -> float:
    """Accept seconds since the epoch. Raises InputError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LATEST:
        return float(value)
    raise InputError(f"{quoted(value, 60)} is not a time in seconds since 1970")


def _out_of_bounds(value: object, low: int, high: int) -> InputError:
    return InputError(f"{quoted(value, 60)} is not a whole number from {low} to {high}")
