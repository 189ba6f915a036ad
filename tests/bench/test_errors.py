from __future__ import annotations

import pytest

from bench.errors import BenchError
from bench.lab import run


def test_a_program_that_fails_is_told_in_its_own_words() -> None:
    """A reader of a report without figures wants to know why."""
    with pytest.raises(BenchError, match="sh -c echo no such link >&2; exit 1 failed: no such link"):
        run(["sh", "-c", "echo no such link >&2; exit 1"])
