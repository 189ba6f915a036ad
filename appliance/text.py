"""Text that others wrote, made fit to be shown: names, labels, values, messages.

Such text may hold escape sequences of a terminal, characters that turn the direction of writing, or a megabyte. All
that is shown to people (tables, logs, errors, the JSON of the admin API) passes through `plain` or `quoted`.
"""

from __future__ import annotations

MOST_SHOWN = 200
"""Characters of a name or label that are shown."""
MOST_MESSAGE = 4000
"""Characters of a whole message that are shown. Names in it are cut on their own."""
MOST_LINE = 100_000
"""Characters of a line or a cell of a table, which may list 256 entries."""


def plain(value: object, most: int = MOST_SHOWN) -> str:
    """Return a value as one line of printing characters, cut to `most` of them.

    Blanks of other kinds become spaces. Control, bidirectional and other non-printing characters become "?".
    """
    text = value if isinstance(value, str) else _worded(value)
    if len(text) > most:
        text = f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def quoted(value: object, most: int = MOST_SHOWN) -> str:
    """Return a value as an error message quotes it: text between quotation marks, anything else as Python has it.

    What does not print is escaped, so that its author can find it. Cut to `most` characters.
    """
    if isinstance(value, str):
        value = value[:most]
        text = f'"{value}"' if value.isprintable() else _worded(value)
    else:
        text = _worded(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def plain_lines(text: str) -> str:
    """Return text of many lines, such as rules or a traceback, with each line plain."""
    return "\n".join(plain(line, MOST_LINE) for line in text.split("\n"))


def plain_tree(value: object, most: int = MOST_MESSAGE) -> object:
    """Return a value for JSON with all text in it plain, at whatever depth."""
    if isinstance(value, str):
        return plain(value, most)
    if isinstance(value, dict):
        return {plain(key, most) if isinstance(key, str) else key: plain_tree(v, most) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_tree(item, most) for item in value]
    return value


def _worded(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 — Python refuses to word a number of 4,301 digits; a spec's object may raise anything
        return f"a {type(value).__name__} that cannot be shown"
