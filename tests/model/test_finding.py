"""Findings of checks."""

from __future__ import annotations

import pytest

from appliance.model.finding import Level, failed, ok, warning


@pytest.mark.parametrize(
    ("finding", "level", "remedy"),
    [
        (ok("nft", "nft 1.0.6"), Level.OK, ""),
        (warning("nft", "nft is old", "install 1.0.6"), Level.WARNING, "install 1.0.6"),
        (failed("nft", "nft is missing", "install it"), Level.FAILED, "install it"),
    ],
)
def test_levels(finding, level, remedy):
    """What is wrong has a remedy; what is well needs none."""
    assert (finding.subject, finding.level, finding.remedy) == ("nft", level, remedy)
    assert finding.words.startswith("nft")
