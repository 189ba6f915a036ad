"""What the package says, written from the program itself: `documents.py TREE` fills TREE.

The commands' own help becomes meshbox(1); the options of `appliance.config.options` become meshbox.toml(5) and
the default /etc/meshbox/meshbox.toml. Also the shells' completions, and the licences of the libraries that come along.
"""

from __future__ import annotations

import gzip
import os
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main
from typer._completion_shared import get_completion_script

from appliance import __version__
from appliance.cli.commands import app
from appliance.config import options as config
from appliance.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = {
    "node": '"host1"',
    "dns_upstreams": '["9.9.9.9"]',
    "docker_subnet": '"10.210.0.0/24"',
    "meta": '{ zone = "a" }',
    "allow_host_paths": '["/srv/data"]',
    "allow_privileged": '["NET_RAW"]',
}
"""For options whose default is no value that could stand in the file."""
LITERAL = re.compile(r"\d+(\.\d+)?|true|false")
WHEN = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
NAME = os.environ.get("DEBFULLNAME", "meshbox maintainers")
MAINTAINER = f"{NAME} <{os.environ.get('DEBEMAIL', 'maintainers@meshbox.example')}>"
"""A builder may name another, as for Debian's own tools. The project has no address; .example is nobody's domain."""

FILES = (
    ("/etc/meshbox/meshbox.toml", "configuration, see meshbox.toml(5)"),
    ("/var/lib/meshbox", "what survives a restart: deployed services, virtual IPs, proxy ports"),
    ("/run/meshbox/admin.sock", "where the appliance answers this command; root only"),
)


def default_file() -> str:
    """Return the configuration file with every option commented out."""
    lines = [
        "# meshbox: see meshbox.toml(5). Each option shows its default, or an example where that is no fixed value."
    ]
    lines += [
        "# MESHBOX_… variables and flags of `meshbox run` win over this file. `systemctl restart meshbox` applies it."
    ]
    table = ""
    for option in config.options():
        before, _, name = option.key.rpartition(".")
        if before != table:
            table = before
            lines += ["", f"[{table}]"]
        value, note = _value(option)
        lines += ["", f"# {option.words}{note}", f"#{name} = {value}"]
    return "\n".join(lines) + "\n"


def _value(option: config.Option) -> tuple[str, str]:
    """Return a value as TOML, and what to say where it is not the default."""
    try:
        option.parse(option.default)
    except InputError:
        return EXAMPLES[option.key], f"; default: {option.default}"
    if option.key in EXAMPLES:
        return EXAMPLES[option.key], f"; default: {option.default or 'none'}"
    return option.default if LITERAL.fullmatch(option.default) else f'"{option.default}"', ""


def configuration_page() -> str:
    """Return meshbox.toml(5)."""
    parts = [
        _head("MESHBOX.TOML", 5, "meshbox.toml", "configuration of meshbox"),
        ".SH DESCRIPTION\n",
        _text(
            "/etc/meshbox/meshbox.toml is a TOML file. Every option is also a variable and a flag of `meshbox run`:"
            " dns_port, MESHBOX_DNS_PORT, --dns-port. The flag wins over the variable, and that over the file. An"
            " unknown key is an error that names the nearest known one."
        ),
        ".SH OPTIONS\n",
    ]
    for option in config.options():
        default = option.default or "empty"
        parts.append(f".TP\n.B {_escape(option.key)}\n{_escape(option.words)}.\nDefault: {_escape(default)}.\n")
    parts.append(
        '.SH EXAMPLE\n.nf\ndns_port = 5353\nregistry = "consul"\n\n[consul]\naddress = "http://127.0.0.1:8500"\n.fi\n'
    )
    parts.append(".SH SEE ALSO\n.BR meshbox (1)\n")
    return "".join(parts)


def command_page() -> str:
    """Return meshbox(1)."""
    root: Any = typer.main.get_command(app)
    parts = [
        _head("MESHBOX", 1, "meshbox", "turn the Docker of this host into a service mesh"),
        ".SH SYNOPSIS\n.B meshbox\n[\\fB\\-\\-config\\fR \\fIFILE\\fR] \\fICOMMAND\\fR \\fR[\\fIARGUMENT\\fR...]\n",
        ".SH DESCRIPTION\n",
        _text(root.help),
        ".SH COMMANDS\n",
    ]
    for name, command in root.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join([f"meshbox {name}", *(p.metavar or p.name.upper() for p in arguments)])
        parts.append(f".SS {_escape(usage)}\n{_text(command.help)}")
        if name == "run":
            parts.append(".PP\nThe options are those of\n.BR meshbox.toml (5).\n")
            continue
        for option in options:
            value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
            parts.append(f".TP\n.B {_escape(', '.join(option.opts) + value)}\n{_escape(option.help or '')}\n")
    parts.append(".SH FILES\n")
    parts += [f".TP\n.I {_escape(path)}\n{_escape(words)}\n" for path, words in FILES]
    parts.append(".SH SEE ALSO\n.BR meshbox.toml (5),\n.BR docker (1),\n.BR nft (8)\n")
    return "".join(parts)


def _head(title: str, section: int, name: str, words: str) -> str:
    day = time.strftime("%Y-%m-%d", WHEN)
    return f'.TH {title} {section} {day} "meshbox {__version__}"\n.SH NAME\n{name} \\- {words}\n'


def _text(words: str) -> str:
    r"""Return paragraphs; those that begin with \b keep their lines."""
    found = []
    for paragraph in words.split("\n\n"):
        if paragraph.startswith("\b"):
            found.append(f".PP\n.nf\n{_escape(paragraph.lstrip(chr(8)).strip(chr(10)))}\n.fi\n")
        else:
            found.append(f".PP\n{_escape(' '.join(paragraph.split()))}\n")
    return "".join(found)


def _escape(text: str) -> str:
    """Make text safe for roff: a line must not begin with its control characters."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("→", "\\->").replace("…", "...")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def changelog() -> str:
    """Return a changelog as Debian's tools read it; the words are in CHANGELOG.md."""
    when = time.strftime("%a, %d %b %Y %H:%M:%S +0000", WHEN)
    return f"meshbox ({__version__}) stable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {MAINTAINER}  {when}\n"


def licences() -> Iterator[str]:
    """Yield a line for each library that comes along."""
    for found in sorted(metadata.distributions(), key=lambda d: d.metadata["Name"].lower()):
        if found.metadata["Name"] != "meshbox":
            classifiers = [c.split(" :: ")[-1] for c in found.metadata.get_all("Classifier", ()) if "License ::" in c]
            licence = (
                found.metadata.get("License-Expression") or ", ".join(classifiers) or found.metadata.get("License")
            )
            yield f" {found.metadata['Name']} {found.version}: {(licence or 'see its dist-info').splitlines()[0]}"


def copyright_file() -> str:
    """Return the copyright file: ours, and where those of the libraries are."""
    own = Path("LICENSE").read_text(encoding="utf-8").strip()
    holder = next(line for line in own.splitlines() if line.startswith("Copyright"))
    year = time.strftime("%Y", WHEN)
    body = "\n".join(f" {line}" if line.strip() else " ." for line in own.splitlines())
    holder = f"{year} {holder.removeprefix('Copyright (c) ')}"
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: meshbox\nComment:\n"
        " The libraries under /usr/lib/meshbox/lib have licences of their own, which lie in their dist-info folders:\n"
        + "\n".join(licences())
        + f"\n\nFiles: *\nCopyright: {holder}\nLicense: Expat\n\nLicense: Expat\n{body}\n"
    )


def main(tree: Path) -> None:
    """Write everything below `tree`."""
    completions = {
        "usr/share/bash-completion/completions/meshbox": "bash",
        "usr/share/zsh/vendor-completions/_meshbox": "zsh",
        "usr/share/fish/vendor_completions.d/meshbox.fish": "fish",
    }
    written: dict[str, str] = {
        "etc/meshbox/meshbox.toml": default_file(),
        "usr/share/man/man1/meshbox.1.gz": command_page(),
        "usr/share/man/man5/meshbox.toml.5.gz": configuration_page(),
        "usr/share/doc/meshbox/changelog.gz": changelog(),
        "usr/share/doc/meshbox/CHANGELOG.md.gz": Path("CHANGELOG.md").read_text(encoding="utf-8"),
        "usr/share/doc/meshbox/copyright": copyright_file(),
    }
    for path, shell in completions.items():
        script = get_completion_script(prog_name="meshbox", complete_var="_MESHBOX_COMPLETE", shell=shell)
        if shell == "zsh":
            script += '\n_meshbox_completion "$@"'  # the first completion is what loads the file
        written[path] = script + "\n"
    for path, text in written.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        target.write_bytes(gzip.compress(content, 9, mtime=0) if path.endswith(".gz") else content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
