"""What others may write at any border: numbers that Python refuses, text that steers a terminal, odd JSON."""

from __future__ import annotations

import orjson
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


def encode(value: object) -> bytes:
    """Return JSON, also with numbers of any length, which no library writes."""
    return orjson.dumps(_marked(value)).replace(b'"@huge@"', HUGE.encode()).replace(b'"@large@"', LARGE.encode())


def _marked(value: object) -> object:
    if isinstance(value, int) and abs(value) >= 2**63:
        return "@huge@" if abs(value) > 10**1000 else "@large@"
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    return [_marked(item) for item in value] if isinstance(value, list) else value


def _places(value: object, before: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in ((*before, key), *_places(item, (*before, key)))]


def put(document: object, place: tuple, value: object) -> object:
    """Return a document of JSON with another value at a place, which is a path of keys and indices."""
    if not place:
        return value
    made = dict(document) if isinstance(document, dict) else list(document)
    before = made.get(place[0]) if isinstance(made, dict) else made[place[0]]
    made[place[0]] = put(before, place[1:], value)
    return made


def without(document: object, place: tuple) -> object:
    """Return a document of JSON without what is at a place."""
    key, *rest = place
    if rest:
        return put(document, (key,), without(document[key], tuple(rest)))
    if isinstance(document, dict):
        return {name: item for name, item in document.items() if name != key}
    return [item for index, item in enumerate(document) if index != key]


@st.composite
def spoilt(draw: st.DrawFn, document: object, values: st.SearchStrategy | None = None) -> object:
    """Return a good document with some value in it replaced or left out."""
    place = draw(st.sampled_from(_places(document)))
    if draw(st.integers(0, 5)) == 0:
        return without(document, place)
    return put(document, place, draw(json() if values is None else values))
