"""What errors say."""

from __future__ import annotations

import pytest

from appliance.errors import HostError, InputError, MeshboxError, RetryError, did_you_mean


@pytest.mark.parametrize("kind", [MeshboxError, InputError, HostError, RetryError])
def test_an_error_is_one_line_with_its_remedy(kind):
    """Words and remedy can be had apart, and are one line for the user."""
    error = kind("port 53 is taken by dnsmasq", "stop it, or set dns_port")
    assert str(error) == "port 53 is taken by dnsmasq: stop it, or set dns_port"
    assert (error.words, error.remedy) == ("port 53 is taken by dnsmasq", "stop it, or set dns_port")


def test_without_a_remedy_the_words_are_all():
    """Nothing dangles behind them, and a colon of their own stays theirs."""
    error = RetryError("a: b")
    assert (str(error), error.words, error.remedy) == ("a: b", "a: b", "")


def test_the_nearest_word_is_offered():
    """And nothing where none is near."""
    assert did_you_mean("cuont", ["count", "name"]) == ' (did you mean "count"?)'
    assert did_you_mean("xyz", ["count", "name"]) == ""
