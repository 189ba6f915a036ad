"""Encoded answers that are kept, and whose go when there are too many."""

from __future__ import annotations

from appliance.dataplane.dns.answers import EncodedAnswers


def test_an_asker_with_most_loses_its_own() -> None:
    """Whoever asks for ever new names leaves the answers to others alone."""
    kept = EncodedAnswers(10)
    kept.keep("victim", b"name", b"answer")
    for number in range(100):
        kept.keep("attacker", b"%d" % number, b"answer")
        assert len(kept) == sum(map(len, kept.by_asker.values())) <= 10
    assert kept.by_asker["victim"] == {b"name": b"answer"}
    assert kept.by_asker["attacker"][b"99"] == b"answer"


def test_the_same_question_counts_once() -> None:
    """The later answer counts."""
    kept = EncodedAnswers(10)
    for answer in (b"former", b"later"):
        kept.keep("asker", b"name", answer)
    assert (len(kept), kept.by_asker["asker"][b"name"]) == (1, b"later")
    kept.clear()
    assert (len(kept), kept.by_asker) == (0, {})
