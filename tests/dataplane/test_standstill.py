"""What comes to the host waits while it is not known whose addresses are whose."""

from __future__ import annotations

import time

import pytest

from appliance.dataplane.standstill import LIMIT, Standstill


def test_it_holds_once_the_word_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never where nobody has ever said it, as where ports are claimed."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kept, other = Standstill(), Standstill()
    kept.confirm()
    for after, holds in ((0.0, False), (LIMIT, False), (LIMIT + 0.01, True), (9.0, True)):
        now[0] = 100.0 + after
        assert (kept.holds, other.holds) == (holds, False)
    kept.confirm()
    assert not kept.holds
