"""Names that resolvers know already."""

from __future__ import annotations

import re

import pytest

from appliance.spec.tlds import SPECIAL, _all, is_top_level_domain


@pytest.mark.parametrize(
    ("label", "known"), [("com", True), ("dev", True), ("local", True), ("shop", True), ("flask", False), ("", False)]
)
def test_top_level_domains(label, known) -> None:
    """Those of the Internet, and those that resolvers treat in a way of their own."""
    assert is_top_level_domain(label) is known


def test_list_is_whole() -> None:
    """It holds labels in lower case alone, as many as IANA's list has without those in other scripts."""
    assert all(re.fullmatch(r"[a-z]{2,}", label) for label in _all())
    assert len(_all()) > 1200
    assert not SPECIAL & _all() - {"arpa"}
