"""Foreign text as people see it."""

from __future__ import annotations

from foreign import EVIL, SCALARS, json
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.errors import InputError, did_you_mean
from appliance.text import MOST_MESSAGE, MOST_SHOWN, plain, plain_lines, plain_tree, quoted


def texts(value):
    """All text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


@given(SCALARS | st.binary())
@example(EVIL)
@example("x" * 2**20)
@example(10**5000)
def test_plain_is_one_printing_line(value):
    """Whatever it was, it neither steers a terminal nor fills it."""
    for found in (plain(value), quoted(value)):
        assert found.isprintable()
        assert len(found) <= MOST_SHOWN


def test_what_prints_stays():
    """Names in any script, and blanks, are shown as they are."""
    assert plain("größe 名前 ok") == "größe 名前 ok"
    assert plain("two\nlines\tand\x1b[31m") == "two lines and?[31m"
    assert quoted("as it is") == '"as it is"'
    assert quoted("\x1b[2J") == r"'\x1b[2J'"


def test_a_long_one_is_cut_where_it_can_be_seen():
    """The mark says that something is missing."""
    assert plain("x" * MOST_SHOWN) == "x" * MOST_SHOWN
    assert plain("x" * 201) == "x" * 199 + "…"
    assert quoted("x" * 500, 60) == '"' + "x" * 56 + "..."


class Wilful:
    """A value that will not be worded."""

    def __repr__(self):
        raise RuntimeError("no")


def test_what_python_cannot_word():
    """It is named by its kind."""
    assert plain(10**5000) == "a int that cannot be shown"
    assert quoted([Wilful()]) == "a list that cannot be shown"


@given(json())
@example({EVIL: [EVIL, {"a": EVIL}]})
def test_all_text_of_a_tree(value):
    """Keys and values at whatever depth; everything that is no text stays."""
    found = plain_tree(value)
    assert all(text.isprintable() and len(text) <= MOST_MESSAGE for text in texts(found))
    assert type(found) is type(value)


def test_errors_are_plain():
    """An error is shown on terminals and in logs whatever it quotes."""
    error = InputError(f"name {EVIL} is wrong", f"write {EVIL}")
    assert str(error).isprintable()
    assert (error.words.isprintable(), error.remedy.isprintable()) == (True, True)
    assert did_you_mean("a" * 2**20, ["b"]) == ""


def test_lines_stay_lines():
    """Rules and tracebacks keep their lines, and nothing else of what does not print."""
    assert plain_lines("table\n  chain\x1b[2J\n") == "table\n  chain?[2J\n"
