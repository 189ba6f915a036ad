"""Writes the reference pages from the program itself: `make docs`. tests/test_docs.py fails while one is out of date.

Each page comes from one table: configuration.md from the options, cli.md from the commands and their help, admin-api.md
from the calls of the admin API, metrics.md from the metrics.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main

from appliance.api import metrics
from appliance.api.routes import CALLS
from appliance.cli.commands import app
from appliance.config import options as config
from appliance.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

REFERENCE = Path(__file__).parent / "reference"
WIDTH = 100
"""Columns of prose. Tables, code and links may be wider."""
MADE = "It is made from the program (`make docs`), so change it there."
SENTENCE_END = re.compile(r"(?<=[\w)`\"}][.?!]) +(?=[A-Z`\"])")


def configuration() -> str:
    """Return docs/reference/configuration.md."""
    tables = {"": "These keys stand before all tables of the file."}
    tables["balance"] = "How connections are spread over replicas."
    tables["consul"] = 'How Consul is reached, with `registry = "consul"`.'
    options = config.options()
    assert {option.table for option in options} == tables.keys(), "a table of the file has no words"  # noqa: S101
    parts = [
        "# Configuration",
        _prose(
            "This page is for operators: every option, its default, and where it is set.",
            MADE,
            f"The file is `{config.DEFAULT_FILE}`, in TOML; it may be absent."
            f" `meshbox --config FILE` and the variable `{config.FILE_VARIABLE}` name another one."
            " Every option is also a variable and a flag of `meshbox run`."
            " A flag wins over the variable, and the variable over the file."
            " An unknown key, variable or flag is an error that names the nearest known one."
            " The appliance reads its configuration once, when it starts.",
        ),
    ]
    for table, words in tables.items():
        parts += [f"## {f'Table [{table}]' if table else 'Options'}", _prose(words)]
        parts.append(
            _table(
                ("key", "default", "accepts", "meaning"),
                (
                    (_code(option.key), _default(option), option.accepts, option.words)
                    for option in options
                    if option.table == table
                ),
            )
        )
    parts += [
        "## Variables and flags",
        _prose(
            "In a variable or a flag every value is text."
            f" `{config.CONSUL_VARIABLE}` is short for two options: it takes Consul's address and sets `registry`"
            " to `consul`.",
        ),
        _table(
            ("key", "variable", "flag of `meshbox run`"),
            ((_code(option.key), _code(option.variable), _code(option.flag)) for option in options),
        ),
        "## Example",
        '```toml\ndns_port = 5353\nregistry = "consul"\n\n[consul]\naddress = "http://127.0.0.1:8500"\n```',
    ]
    return _page(parts)


def _default(option: config.Option) -> str:
    """Return the default, as code where it is a value and in words where it depends on the machine."""
    try:
        option.parse(option.default)
    except InputError:
        return option.default
    return _code(option.default)


def command_line() -> str:
    """Return docs/reference/cli.md."""
    root: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        _prose("This page is for everybody who types `meshbox`: every command with its arguments and options.", MADE),
        *_help(root.help),
        "Options that stand before the command:",
        _options(root),
    ]
    panels = dict.fromkeys(command.rich_help_panel for command in root.commands.values())
    for panel in panels:
        parts.append(f"## {panel}")
        for name, command in root.commands.items():
            if command.rich_help_panel == panel:
                parts += _command(name, command)
    return _page(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    """Yield what there is to say of one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    yield f"### {' '.join(['meshbox', name, *(p.metavar for p in arguments)])}"
    yield from _help(command.help)
    if arguments:
        yield _table(("argument", "meaning"), ((_code(p.metavar), p.help or "") for p in arguments))
    if name == "run":
        yield _prose("Its options are those of the [configuration](configuration.md).")
    else:
        yield _options(command)


def _options(command: Any) -> str:
    rows = []
    for option in command.params:
        if option.param_type_name == "option":
            value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
            default = f" Default: {option.default:g}." if isinstance(option.default, float | int) and value else ""
            rows.append((_code(", ".join(option.opts) + value), (option.help or "") + default))
    return _table(("option", "meaning"), rows)


def _help(words: str) -> Iterator[str]:
    r"""Yield the paragraphs of a help text. One that begins with \b is a heading line and a block of code."""
    for paragraph in words.replace("\\[", "[").split("\n\n"):
        if paragraph.startswith("\b"):
            head, _, block = paragraph.removeprefix("\b").strip("\n").partition("\n")
            if "service(" in block:
                kind = "py"
            else:
                kind = "sh" if all(re.fullmatch(r" *meshbox( \S+)+", line) for line in block.splitlines()) else "text"
            yield head
            yield f"```{kind}\n{textwrap.dedent(block)}\n```"
        elif paragraph.startswith("Example: "):
            yield f"```sh\n{paragraph.removeprefix('Example: ')}\n```"
        else:
            yield _prose(paragraph)


def admin_api() -> str:
    """Return docs/reference/admin-api.md."""
    parts = [
        "# Admin API",
        _prose(
            "This page is for authors of tools that talk to an appliance: every call, and what it answers.",
            MADE,
            "The appliance speaks HTTP with JSON on the unix socket `admin.sock` in `run_dir`."
            " Only root may use it. The command line is its client: what a noun prints with `--json` is the answer"
            " of the call with that name. Keys of answers stay as they are from version to version.",
        ),
        "```sh\ncurl --unix-socket /run/meshbox/admin.sock http://meshbox/v1/status\n```",
        "## Calls",
        _table(
            ("call", "what it does"),
            (
                (f"[`{call.method} {call.path}`](#{_anchor(call.method + ' ' + call.path)})", call.words.split("\n")[0])
                for call in CALLS
            ),
        ),
        "## Errors",
        _prose('An error is `{"error": "one line"}` with one of these statuses.'),
        _table(
            ("status", "meaning"),
            (
                ("400", "bad input; nothing was changed"),
                ("404", "what was asked for is not there"),
                ("500", "a fault in the appliance; its log has the cause"),
                ("503", "it cannot be done now"),
            ),
        ),
    ]
    for call in CALLS:
        parts.append(f"## {call.method} {call.path}")
        parts += map(_prose, call.words.split("\n"))
        if call.parameters:
            parts.append(_table(("parameter", "meaning"), ((_code(k), words) for k, words in call.parameters.items())))
        if call.takes_services:
            parts.append(_prose("The body is the services, with the fields that a spec file has."))
            parts.append(
                '```json\n{"services": [{"name": "web", "containers": [{"name": "nginx", "image": "nginx"}]}]}\n```'
            )
    return _page(parts)


def metrics_page() -> str:
    """Return docs/reference/metrics.md."""
    rows = (
        (_code(metric.exposed), metric.kind, ", ".join(map(_code, metric.labels)), metric.words)
        for metric in metrics.METRICS
    )
    counters = ((_code(f"meshbox_{name}_total"), words) for name, words in sorted(metrics.COUNTERS.items()))
    return _page(
        [
            "# Metrics",
            _prose(
                "This page is for operators who watch appliances with Prometheus: every metric, and what it counts.",
                MADE,
                "`GET /metrics` of the [admin API](admin-api.md) answers with all of them."
                " Values are read when Prometheus asks; counters begin at 0 when the appliance starts.",
            ),
            "```sh\ncurl --unix-socket /run/meshbox/admin.sock http://meshbox/metrics\n```",
            "## The appliance and its traffic",
            _prose(
                "A `destination` is written `redis.flask:8080/tcp`. A `backend` is the container's name where this"
                " machine knows it, and otherwise an address with a port."
            ),
            _table(("metric", "kind", "labels", "meaning"), rows),
            "## Counters",
            _prose("These have no labels."),
            _table(("metric", "meaning"), counters),
        ]
    )


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _prose(*paragraphs: str) -> str:
    """Return paragraphs with one sentence a line; a sentence that is too long for one goes on in the next."""
    return "\n\n".join(
        "\n".join(
            textwrap.fill(sentence, WIDTH, break_long_words=False, break_on_hyphens=False)
            for sentence in SENTENCE_END.split(" ".join(paragraph.split()))
        )
        for paragraph in paragraphs
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |".replace("|  |", "| |") for line in lines
    )


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _anchor(heading: str) -> str:
    """Return the anchor that a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PAGES = {
    "configuration.md": configuration,
    "cli.md": command_line,
    "admin-api.md": admin_api,
    "metrics.md": metrics_page,
}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        path = REFERENCE / name
        path.write_text(page(), encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
