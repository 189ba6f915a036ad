"""Move modules to their rooms, and prove that a commit moved them and did nothing else.

    moves.py apply GROUP …   move the modules of these groups with their tests, and rewrite who imports them
    moves.py check REVISION  fail unless each module's syntax tree equals that of the parent commit but for import paths

This file goes when the moves are through.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

GROUPS = {
    "ground": {"backoff": "retry"},
    "spec": {
        "dsl": "spec.dsl",
        "model.specparse": "spec.parse",
        "model.fieldparse": "spec.fields",
        "model.tlds": "spec.tlds",
    },
    "config": {"config": "config.options", "configvalues": "config.values"},
    "model": {"findings": "model.finding", "drivers.registryfacts": "model.registry"},
    "plan": {"plan.shape": "plan.skeleton"},
    "consul": {
        "drivers.consul": "drivers.consul.registry",
        "drivers.consulannounce": "drivers.consul.announce",
        "drivers.consulapi": "drivers.consul.api",
        "drivers.consulcodec": "drivers.consul.codec",
        "drivers.consuldeparted": "drivers.consul.departed",
        "drivers.consulevidence": "drivers.consul.loss",
        "drivers.consulfile": "drivers.consul.cache",
        "drivers.consulliveness": "drivers.consul.liveness",
        "drivers.consulrejoin": "drivers.consul.rejoin",
        "drivers.consulspecs": "drivers.consul.specs",
        "drivers.consultransport": "drivers.consul.transport",
        "drivers.consulwatch": "drivers.consul.watch",
        "drivers.presence": "drivers.consul.presence",
    },
    "docker": {
        "drivers.docker": "drivers.docker.client",
        "drivers.dockercreate": "drivers.docker.create",
        "drivers.dockerhttp": "drivers.docker.http",
        "drivers.dockerlabels": "drivers.docker.labels",
        "drivers.dockertypes": "drivers.docker.types",
        "drivers.newborn": "drivers.docker.prestart",
        "drivers.probe": "drivers.docker.probe",
        "inventory": "drivers.docker.inventory",
        "roster": "drivers.docker.workloads",
        "gateway": "drivers.docker.none",
    },
    "host": {
        "drivers.hostnames": "drivers.host.resolvconf",
        "drivers.hostresolv": "drivers.host.resolvers",
        "drivers.localstore": "drivers.local.store",
        "drivers.statefile": "drivers.local.statefile",
        "drivers.netlink": "drivers.netns.netlink",
        "drivers.netns": "drivers.netns.identity",
        "drivers.netnsdir": "drivers.netns.directory",
        "drivers.nft": "drivers.nft.client",
        "drivers.nfthelper": "drivers.nft.helper_main",
        "drivers.nftcommits": "drivers.nft.commits",
        "drivers.rulesetwatch": "drivers.nft.drift",
    },
    "dataplane": {
        "dataplane.face": "dataplane.api",
        "dataplane.plane": "dataplane.inprocess",
        "dataplane.inside": "dataplane.namespace",
        "dataplane.epoll": "dataplane.loop.epoll",
        "dataplane.uvpoll": "dataplane.loop.uvpoll",
        "dataplane.timerfd": "dataplane.loop.timerfd",
        "dataplane.entrance": "dataplane.tcp.accept",
        "dataplane.listener": "dataplane.tcp.listener",
        "dataplane.dial": "dataplane.tcp.dial",
        "dataplane.relay": "dataplane.tcp.relay",
        "dataplane.pipes": "dataplane.tcp.pipes",
        "dataplane.door": "dataplane.tcp.door",
        "dataplane.datagram": "dataplane.udp.listener",
        "dataplane.udpsession": "dataplane.udp.session",
        "dataplane.udpsocket": "dataplane.udp.sockets",
        "dataplane.udpdoor": "dataplane.udp.door",
        "dataplane.dnsserver": "dataplane.dns.server",
        "dataplane.dnstcp": "dataplane.dns.tcp",
        "dataplane.resolver": "dataplane.dns.resolver",
        "dataplane.upstream": "dataplane.dns.upstream",
        "dataplane.workers": "dataplane.workers.pool",
        "dataplane.member": "dataplane.workers.process",
        "dataplane.worker": "dataplane.workers.worker",
        "dataplane.orders": "dataplane.workers.messages",
        "dataplane.channel": "dataplane.workers.channel",
        "dataplane.merge": "dataplane.workers.merge",
        "dataplane.precedence": "dataplane.workers.priority",
    },
    "control": {
        "reconcile": "control.reconcile",
        "effects": "control.effects",
        "doors": "control.doors",
        "deployer": "control.deployer",
        "hostaccess": "control.hostaccess",
    },
    "check": {
        "fitness": "check.host",
        "fitfiles": "check.files",
        "fitfirewall": "check.firewall",
        "fitconsul": "check.consul",
        "surroundings": "check.kernel",
        "cleanup": "check.cleanup",
    },
    "api": {"admin": "api.server", "views": "api.views", "metrics": "api.metrics"},
    "app": {
        "app": "app.main",
        "bridge": "app.bridge",
        "drain": "app.shutdown",
        "notify": "app.systemd",
        "worker": "app.worker",
    },
    "testing": {"testing": "testing.appliance"},
    "cli": {"cli.rollouts": "cli.deploy", "cli.checks": "cli.check", "cli.cleaning": "cli.cleanup"},
}
ROOMS = {
    "app": "The appliance as a process: built, started in order, stopped in reverse.",
    "api": "The admin API on the unix socket: what it answers, and how.",
    "control": "The one loop, and the hands by which its steps become deeds.",
    "check": "Whether this host is fit for the appliance, and what a former one has left behind.",
    "config": "The configuration: its options, and how their values are read.",
    "spec": "What a user writes: spec files and labels, parsed once into values.",
    "testing": "Stand-ins for tests, shipped with the code: they check what they are told.",
    "drivers.consul": "Consul: specs, machines and endpoints shared with other machines.",
    "drivers.docker": "Docker Engine: containers that run, start, and are made.",
    "drivers.nft": "nftables: rulesets pushed, and watched for changes by others.",
    "drivers.netns": "Network namespaces: which one a file leads to, and what it has.",
    "drivers.local": "The embedded registry of a machine by itself, and files that outlive the process.",
    "drivers.host": "The name resolution of this host itself.",
    "dataplane.tcp": "Connections: accepted, dialled, relayed.",
    "dataplane.udp": "Datagrams: listeners and the sessions of their clients.",
    "dataplane.dns": "The DNS server, and the resolver behind it.",
    "dataplane.workers": "The same data plane in more processes, fed by this one.",
    "dataplane.loop": "What puts an epoll set and timers of our own into uvloop.",
}
FILES = ("appliance", "tests", "bench", "examples", "packaging")


def main() -> int:
    """Do as told."""
    verb, *rest = sys.argv[1:]
    if verb == "apply":
        for group in rest:
            _apply(GROUPS[group])
        return 0
    return _check(rest[0])


def _python() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *FILES], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name.endswith(".py")]


def _exists(dotted: str) -> bool:
    path = ROOT / dotted.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _apply(moves: dict[str, str]) -> None:
    full = {f"appliance.{old}": f"appliance.{new}" for old, new in moves.items()}
    rewritten = {path: _rewritten(path.read_text(), full) for path in _python() if path != Path(__file__)}
    for path, text in rewritten.items():
        path.write_text(text)
    for old, new in moves.items():
        _git_move(f"appliance/{old.replace('.', '/')}.py", f"appliance/{new.replace('.', '/')}.py.moving")
        *folder, name = old.split(".")
        *new_folder, new_name = new.split(".")
        test = "/".join(["tests", *folder, f"test_{name}.py"])
        if (ROOT / test).exists():
            _git_move(test, "/".join(["tests", *new_folder, f"test_{new_name}.py"]))
    for new in moves.values():
        path = f"appliance/{new.replace('.', '/')}.py"
        _git_move(f"{path}.moving", path)
    for room, words in ROOMS.items():
        folder = ROOT / "appliance" / room.replace(".", "/")
        if folder.is_dir() and not (folder / "__init__.py").exists():
            (folder / "__init__.py").write_text(f'"""{words}"""\n')
            subprocess.run(["git", "add", folder / "__init__.py"], cwd=ROOT, check=True)


def _git_move(old: str, new: str) -> None:
    (ROOT / new).parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "mv", old, new], cwd=ROOT, check=True)


def _rewritten(text: str, full: dict[str, str]) -> str:
    """Return a module's text with imports, and names of modules in texts and comments, as they are after the moves."""
    lines = text.splitlines(keepends=True)
    edits: list[tuple[int, int, list[str]]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "appliance":
            new = _import_from(node, full)
            if new is not None:
                edits.append((node.lineno - 1, node.end_lineno or node.lineno, new))
        elif isinstance(node, ast.Import):
            new_names = [(full.get(a.name), a) for a in node.names]
            if any(name for name, _ in new_names):
                raise SystemExit(f"import {ast.unparse(node)}: not handled")
    for first, last, new in sorted(edits, key=lambda e: e[0], reverse=True):
        indent = re.match(r"\s*", lines[first])[0]  # type: ignore[index]
        tail = lines[last - 1].split("#", 1)
        comment = f"  # {tail[1].strip()}" if len(tail) == 2 else ""
        lines[first:last] = [f"{indent}{line}{comment}\n" for line in new]
    return _texts("".join(lines), full)


def _import_from(node: ast.ImportFrom, full: dict[str, str]) -> list[str] | None:
    module = str(node.module)
    if module in full:
        names = ", ".join(ast.unparse(alias) for alias in node.names)
        return [f"from {full[module]} import {names}"]
    moved = [a for a in node.names if f"{module}.{a.name}" in full]
    if not moved:
        return None
    found = []
    kept = [a for a in node.names if a not in moved]
    if kept:
        found.append(f"from {module} import {', '.join(ast.unparse(a) for a in kept)}")
    for a in moved:
        parent, name = full[f"{module}.{a.name}"].rsplit(".", 1)
        bound = a.asname or a.name
        found.append(f"from {parent} import {name}" + (f" as {bound}" if bound != name else ""))
    return found


def _texts(text: str, full: dict[str, str]) -> str:
    """Rewrite names of modules in string literals and comments, dotted or as paths."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    lines = text.splitlines(keepends=True)
    for token in reversed(tokens):
        if token.type not in {tokenize.STRING, tokenize.COMMENT}:
            continue
        new = _worded(token.string, full)
        if new != token.string:
            (row, column), (last_row, last_column) = token.start, token.end
            before, after = lines[row - 1][:column], lines[last_row - 1][last_column:]
            lines[row - 1 : last_row] = (before + new + after).splitlines(keepends=True)
    return "".join(lines)


def _worded(text: str, full: dict[str, str]) -> str:
    for old, new in sorted(full.items(), key=lambda item: -len(item[0])):
        # A name of a module, and not the attribute of a variable: `self.appliance.config`.
        text = re.sub(rf"(?<![\w.]){re.escape(old)}(?=[.\"'` ,:;)\n]|$)(?!\.\w+\.py)", f"\0{new[9:]}", text)
        text = re.sub(rf"(?<!\w){re.escape(old.replace('.', '/'))}\.py", f"\0{new[9:].replace('.', '/')}.py", text)
    return text.replace("\0", "appliance")


def _check(revision: str) -> int:
    """Compare each module of a commit with what it was in the parent."""
    shown = subprocess.run(
        ["git", "diff", "--name-status", "--find-renames=30%", f"{revision}^", revision, "--", *FILES],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    full = {
        f"appliance.{old}": f"appliance.{new}"
        for moves in GROUPS.values()
        for old, new in moves.items()
        if f"\tappliance/{old.replace('.', '/')}.py\tappliance/{new.replace('.', '/')}.py\n" in shown
    }
    bad = 0
    count = 0
    for line in shown.splitlines():
        status, *names = line.split("\t")
        if not names[-1].endswith(".py") or names[-1] in {"packaging/moves.py", "tests/test_layers.py"}:
            continue
        if status == "A" and names[0].endswith("__init__.py"):
            continue
        old, new = names[0], names[-1]
        before, after = _tree(f"{revision}^:{old}", full), _tree(f"{revision}:{new}", {})
        count += 1
        if before != after:
            bad += 1
            print(f"{old} → {new}: more than moved")
    print(f"{count} modules compared, {bad} differ by more than import paths")
    return bool(bad)


def _tree(name: str, full: dict[str, str]) -> tuple[str, list[str]]:
    text = subprocess.run(["git", "show", name], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tree = ast.parse(text)
    imports = []
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if isinstance(value, list) and any(isinstance(v, ast.Import | ast.ImportFrom) for v in value):
                imports += [
                    f"{a.asname or a.name} = {_mapped(f'{v.module}.{a.name}', full)}"
                    for v in value if isinstance(v, ast.ImportFrom) for a in v.names
                ]  # fmt: skip
                setattr(node, field, [v for v in value if not isinstance(v, ast.ImportFrom)])
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = _worded(node.value, full)
    return ast.dump(tree), sorted(imports)


def _mapped(name: str, full: dict[str, str]) -> str:
    """Return the new name of a module, or of what stands in it. New names stay as they are."""
    if name in full:
        return full[name]
    parent, _, last = name.rpartition(".")
    return f"{full[parent]}.{last}" if parent in full else name


if __name__ == "__main__":
    sys.exit(main())
