"""What carries traffic may not wait: every call that can block is bounded, and the reason stands here.

With `workers = 0` the control plane shares a thread with the traffic. So no call of that process waits for a disk of
others, a program, a lock, a peer or a resolver without a limit. The syntax trees of all that it consists of are
searched for calls that can block. Each that is found must be in `BOUNDED`, with what bounds it.
"""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "appliance"
ELSEWHERE = {
    "cli": "the process of the command line",
    "testing": "tests",
    "check": "the process of the command line; also the start of an appliance, before anything is served",
    "spec/dsl.py": "the process of the command line",
    "drivers/nft/helper_main.py": "the process of the helper",
    "config": "the start of a process, before anything is served",
}
"""What does not run in the process that carries traffic while it does."""

NAMES = {
    *("subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output", "subprocess.Popen"),
    *("os.system", "os.popen", "os.waitpid", "os.waitid", "os.wait", "os.read", "os.write", "os.splice", "os.sendfile"),
    *("os.open", "os.fdopen", "os.listdir", "os.scandir", "os.walk", "os.fsync", "os.readlink", "open", "FileIO"),
    *("time.sleep", "fcntl.flock", "fcntl.lockf", "input", "signal.pause", "signal.sigwait", "select.select"),
    *(
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "socket.getfqdn",
        "socket.create_connection",
    ),
    *("shutil.copystat", "shutil.copy", "shutil.rmtree", "shutil.move", "urllib.request.urlopen"),
}
"""Calls that can block, by their whole names."""
METHODS = {
    *("wait", "join", "result", "communicate", "acquire", "poll", "select", "connect", "connect_ex", "accept"),
    *("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "recvmmsg"),
    *("send", "sendall", "sendto", "sendmsg", "sendmmsg"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "open", "iterdir", "glob", "rglob", "readlink"),
    *("stat", "exists", "lexists", "is_dir", "is_file", "unlink", "mkdir", "rename", "flush"),
}
"""Methods that can block, of whatever object."""

LOCAL = "a file system of this computer's own"
NONBLOCKING = "the socket does not block"
BOUNDED = {
    # what answers from memory
    "api/metrics.py _resident *.read_text": "/proc",
    "api/metrics.py _open_files *.iterdir": "/proc",
    "drivers/netns/identity.py host *.read_text": "/proc",
    "drivers/netns/identity.py * *.stat": "/proc, and nsfs where Docker has it: a tmpfs",
    "drivers/netns/identity.py wait_namespace os.path.lexists": "the same",
    "dataplane/namespace.py  os.open": "/proc",
    # files
    "control/doors.py _open os.open": "nsfs, with O_NONBLOCK in case that it is a FIFO by now",
    "control/doors.py _listen FileIO": "opened by _open",
    "dataplane/workers/worker.py Worker._open_door FileIO": "of a descriptor that is open",
    "drivers/docker/prestart.py _files *.iterdir": "Docker's folder of namespaces is a tmpfs",
    "drivers/netns/directory.py DirectoryWatch.* *": "the same folder",
    "drivers/docker/inventory.py Inventory._list *.exists": "the same folder",
    "drivers/host/resolvconf.py *": f"/etc and /run: {LOCAL}",
    "drivers/host/resolvers.py *": f"/etc and /run: {LOCAL}",
    "render/ruleset.py _template *": "read once, when it is imported",
    "api/server.py * path.unlink": f"run_dir: {LOCAL}",
    "drivers/consul/transport.py _token *.read_text": "at the start, and then in a thread",
    "lock.py *": "at the start, and LOCK_NB; in the command line",
    # in threads, for which only their own task waits
    "drivers/local/statefile.py *": "called in a thread",
    "drivers/local/store.py LocalStore._save *": "called in a thread",
    "drivers/local/store.py LocalStore._write *.exists": f"state_dir: {LOCAL}",
    "drivers/netns/owner.py *": "called in a thread",
    "drivers/host/paths.py *": "called in a thread",
    "files.py *": "called in a thread, or at the start; with O_NONBLOCK in case that it is a FIFO",
    # sockets
    "app/systemd.py Notifier._tell sender.sendto": NONBLOCKING,
    "dataplane/dns/*.py * *.send*": NONBLOCKING,
    "dataplane/dns/*.py * *.recv": NONBLOCKING,
    "dataplane/dns/*.py * *.accept": NONBLOCKING,
    "dataplane/dns/upstream.py * sock.connect": "UDP",
    "dataplane/dns/relay.py UdpRelay.send self._upstream.connect": "UDP",
    "dataplane/dns/tcprelay.py TcpRelay.__init__ sock.connect": NONBLOCKING,
    "control/effects.py HostEffects._open_door self._doors.dns.open": "a method of DnsDoors",
    "dataplane/dns/upstream.py _numeric socket.getaddrinfo": "AI_NUMERICHOST: an address is looked up nowhere",
    "dataplane/namespace.py NamespaceSockets.* sock.connect": "UDP",
    "dataplane/tcp/accept.py *.accept": NONBLOCKING,
    "dataplane/namespace.py NamespaceSockets.dial sock.connect_ex": NONBLOCKING,
    "dataplane/tcp/dial.py _connect sock.connect_ex": NONBLOCKING,
    "dataplane/tcp/relay.py End.* *": "MSG_DONTWAIT or SPLICE_F_NONBLOCK",
    "dataplane/udp/*.py * *.send*": NONBLOCKING,
    "dataplane/udp/*.py * *.recv*": NONBLOCKING,
    "dataplane/udp/sockets.py connect sock.connect": "UDP",
    "dataplane/workers/channel.py Channel.* *.send": NONBLOCKING,
    "dataplane/workers/*.py *.send": "a message for Channel._write",
    "drivers/netns/netlink.py ask sock.*": "the kernel answers within the call, and the socket does not block",
    "drivers/netns/routes.py wait_neighbour told.recv": NONBLOCKING,
    "drivers/nft/drift.py RulesetWatch._read sock.recv": NONBLOCKING,
    "drivers/netns/*.py *.join": "netlink.join: a socket joins a group",
    "drivers/nft/drift.py *.join": "netlink.join: a socket joins a group",
    "drivers/host/bridges.py *.join": "netlink.join: a socket joins a group",
    "drivers/host/bridges.py _drain told.recv": NONBLOCKING,
    "drivers/netns/links.py wait_ports told.recv": NONBLOCKING,
    "drivers/netns/links.py _number_of os.open": "nsfs, with O_NONBLOCK in case that it is a FIFO by now",
    "drivers/netns/listening.py _exchange sock.*": "the kernel answers within the call, and the socket does not block",
    "drivers/nft/lease.py * sock.*": "the kernel answers within the call, and the socket does not block",
    # threads and processes
    "drivers/netns/netlink.py entered.enter os.open": "nsfs, with O_NONBLOCK in case that it is a FIFO by now",
    "drivers/netns/netlink.py entered thread.join": "it enters a namespace and makes sockets, which takes 0.2 ms",
    "dataplane/workers/process.py WorkerProcess.start subprocess.Popen": "a fork, of one program that is installed",
    "dataplane/workers/process.py WorkerProcess.finish *.wait": "at the end: END_SECONDS, or after SIGKILL",
    "dataplane/workers/process.py WorkerProcess._on_end process.wait": "it has ended: its descriptor says so",
    # polls
    "dataplane/loop/epoll.py *.poll": "the wait of the loop itself, which its own timer ends",
    "drivers/nft/drift.py RulesetWatch._read_all self._epoll.poll": "0 s",
    "logs.py _written select.poll": "makes an object",
    "logs.py _written room.poll": "PATIENCE",
    "logs.py _written os.write": "no more than there is room for",
    # the same words for other things
    "drivers/consul/api.py ConsulApi.join *.join": "makes a call that is awaited later",
    "drivers/consul/*.py *.open": "the presence port",
}
"""File, function and call, as patterns, and what bounds them."""


def blocking(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each call of a file that can block, with its function, and its line."""
    tree = ast.parse(path.read_text())
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}

    def visit(node: ast.AST, where: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            inside = where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = f"{where}.{child.name}" if where else child.name
            if isinstance(child, ast.Call) and id(child) not in awaited and can_block(child.func):
                yield f"{path.relative_to(SOURCE)} {inside} {ast.unparse(child.func)}", child.lineno
            yield from visit(child, inside)

    return visit(tree, "")


def can_block(called: ast.expr) -> bool:
    """Whether a call of this can block, by its name."""
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Constant | ast.JoinedStr):
        return False  # ", ".join
    name = ast.unparse(called)
    return name in NAMES or (isinstance(called, ast.Attribute) and called.attr in METHODS)


FOUND = [
    one
    for path in sorted(SOURCE.rglob("*.py"))
    if not any(str(path.relative_to(SOURCE)).startswith(start) for start in ELSEWHERE)
    for one in blocking(path)
]


@pytest.mark.parametrize(("call", "line"), FOUND, ids=[call for call, _ in FOUND])
def test_a_call_that_can_block_is_bounded(call: str, line: int) -> None:
    """Whoever adds one says what bounds it, or makes it in a thread."""
    assert any(fnmatchcase(call, pattern) for pattern in BOUNDED), (
        f"line {line}: {call}() can block, and with it all traffic. Let Trio wait for it, or a thread, or a socket that"
        " does not block; or write here what bounds it"
    )


@pytest.mark.parametrize("pattern", BOUNDED)
def test_no_reason_is_out_of_date(pattern: str) -> None:
    """What is not called any more needs no reason."""
    assert BOUNDED[pattern]
    assert any(fnmatchcase(call, pattern) for call, _ in FOUND)


@pytest.mark.parametrize("line", ["time.sleep(1)", "sock.recv(9)", "open('/x')", "path.read_text()", "thread.join()"])
def test_the_search_finds(line: str) -> None:
    """Each kind of call that can block, unless it is awaited."""
    (statement,) = ast.parse(line).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert can_block(statement.value.func)
