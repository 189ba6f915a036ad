"""Findings of checks."""

from __future__ import annotations

import pytest

from appliance.model.finding import Level, failed, ok, warning


@pytest.mark.parametrize(
    ("finding", "level", "line"),
    [
        (ok("nft", "nft 1.0.6"), Level.OK, "nft 1.0.6"),
        (warning("nft", "nft is old", "install 1.0.6"), Level.WARNING, "nft is old: install 1.0.6"),
        (failed("nft", "nft is missing", "install it"), Level.FAILED, "nft is missing: install it"),
    ],
)
def test_line(finding, level, line):
    """What is wrong comes before the remedy; what is well needs none."""
    assert finding.level is level
    assert finding.line == line
    assert finding.subject == "nft"
