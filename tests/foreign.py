"""What others may write at any border: numbers that Python refuses, text that steers a terminal, odd JSON."""

from __future__ import annotations

from hypothesis import strategies as st

HUGE = "1" * 5000
"""Python refuses to read or write a number of more than 4,300 digits, with a ValueError."""
LARGE = "9" * 400
"""Larger than any float: an OverflowError."""
EVIL = "\x1b[31mEVIL\x1b]0;pwn\a\x1b[2J\u202egnp.exe\u2066\u200b\u2028\r\n\t\x7f\x9b"
"""Colour, a window's title, a bell, a cleared screen, turned writing, what has no width, lines, C1."""

TEXTS = (
    st.text(max_size=20)
    | st.text("ab.:/0123456789-tcpudp٣²,= ", max_size=30)
    | st.sampled_from(["", HUGE, LARGE, f"{LARGE}h", EVIL, f"a.b:{HUGE}", "²", "٣", "1_0", "-1", "99999", "nan", "inf"])
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([5000, 400]).map(lambda digits: 10**digits)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS


def json(scalars: st.SearchStrategy = SCALARS) -> st.SearchStrategy:
    """Return values of any shape that are made of these."""
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=5,
    )


def check_shown(text: object, most: int = 600) -> None:
    """Check that words can be shown to people: one line that prints, and bearable."""
    assert str(text).isprintable(), repr(str(text))
    assert len(str(text)) < most
