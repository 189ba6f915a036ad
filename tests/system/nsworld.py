"""A host with containers, in bare network namespaces: who sends from where, and who gets it.

    workload ─┐
              ├─ bridge in host ── outside
    neighbour ┘

Sockets of every namespace live in the test's own process. Names begin with `mbd` and the process's id.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import subprocess
import threading
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson
import trio

from appliance.dataplane.sockets import listen
from appliance.dataplane.udp import sockets
from appliance.drivers.netns import identity, netlink, routes
from appliance.model.network import Netns
from appliance.render.ruleset import DOOR_PORT

if TYPE_CHECKING:
    from collections.abc import Callable

HOST, WORKLOAD, NEIGHBOUR, OUTSIDE = "172.30.0.1", "172.30.0.2", "172.30.0.3", "198.51.100.2"
HOST6, WORKLOAD6, NEIGHBOUR6, OUTSIDE6 = "fd30::1", "fd30::2", "fd30::3", "2001:db8:30::2"
HOST_OUTSIDE, HOST_OUTSIDE6 = "198.51.100.1", "2001:db8:30::1"

REFUSED = "refused"
SILENCE = "silence"

SECONDS = 2.0
"""How long a probe waits; only silence takes it."""

_libc = ctypes.CDLL(None, use_errno=True)


def inside(path: str, work: Callable[[], Any]) -> Any:
    """Do something in another network namespace, in a thread that ends with it."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with Path(path).open("rb") as file:
                if _libc.setns(file.fileno(), 0x40000000) != 0:
                    raise OSError(ctypes.get_errno(), path)
            results.append(work())
        except BaseException as error:  # noqa: BLE001 — raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class World:
    """The namespaces and the servers in them, which are named by what a probe should say."""

    def __init__(self) -> None:
        self._prefix = f"mbd{os.getpid()}"
        self._stack = ExitStack()
        self._servers: dict[str, socket.socket] = {}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for name in ("host", "workload", "neighbour", "outside"):
                undo.callback(
                    subprocess.run, ["ip", "netns", "del", self._name(name)], check=False, capture_output=True
                )
                self.ip("netns", "add", self._name(name))
                self.sysctl(name, "net/ipv6/conf/default/accept_dad", "0")
                self.ip("-n", self._name(name), "link", "set", "lo", "up")
            self.sysctl("host", "net/ipv4/ip_forward", "1")
            self.sysctl("host", "net/ipv6/conf/all/forwarding", "1")
            self.ip("-n", self._name("host"), "link", "add", "br0", "type", "bridge")
            self.address("host", "br0", f"{HOST}/16", f"{HOST6}/64")
            for name, v4, v6 in (("workload", WORKLOAD, WORKLOAD6), ("neighbour", NEIGHBOUR, NEIGHBOUR6)):
                self.cable(name)
                self.ip("-n", self._name("host"), "link", "set", name, "master", "br0")
                self.address(name, "eth0", f"{v4}/16", f"{v6}/64")
                self.route(name, HOST, HOST6)
            self.cable("outside")
            self.address("host", "outside", f"{HOST_OUTSIDE}/24", f"{HOST_OUTSIDE6}/64")
            self.address("outside", "eth0", f"{OUTSIDE}/24", f"{OUTSIDE6}/64")
            self.route("outside", HOST_OUTSIDE, HOST_OUTSIDE6)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close_servers()
        self._stack.close()

    def _name(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def path(self, name: str) -> str:
        """Return the file that leads into a namespace."""
        return f"/run/netns/{self._name(name)}"

    def netns(self, name: str) -> Netns:
        """Return a namespace as the appliance knows it."""
        found = identity.identify(self.path(name))
        assert found is not None
        return Netns(id=found, path=self.path(name))

    def ip(self, *arguments: str) -> None:
        """Change links, addresses, routes or namespaces."""
        subprocess.run(["ip", *arguments], check=True)

    def nft(self, name: str, text: str, *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run nft as somebody else would."""
        command = ["nsenter", f"--net={self.path(name)}", "nft", "-f", "-"]
        return subprocess.run(command, input=text.encode(), check=check, capture_output=True)

    def sysctl(self, name: str, key: str, value: str) -> None:
        """Set a sysctl inside a namespace."""

        def write() -> None:
            Path(f"/proc/sys/{key}").write_text(value)

        inside(self.path(name), write)

    def cable(self, name: str) -> None:
        """Join a namespace's eth0 to an interface of the host that is called as the namespace is."""
        peer = ("peer", "name", "eth0", "netns", self._name(name))
        self.ip("-n", self._name("host"), "link", "add", name, "type", "veth", *peer)
        self.ip("-n", self._name("host"), "link", "set", name, "up")

    def address(self, name: str, device: str, v4: str, v6: str) -> None:
        """Give an interface addresses and set it up."""
        self.ip("-n", self._name(name), "link", "set", device, "up")
        self.ip("-n", self._name(name), "addr", "add", v4, "dev", device)
        self.ip("-n", self._name(name), "addr", "add", v6, "dev", device, "nodad")

    def link(self, name: str, state: str) -> None:
        """Set a namespace's eth0 `up` or `down`."""
        self.ip("-n", self._name(name), "link", "set", "eth0", state)

    def route(self, name: str, v4: str, v6: str) -> None:
        """Set the default routes."""
        self.ip("-n", self._name(name), "route", "add", "default", "via", v4)
        self.ip("-n", self._name(name), "-6", "route", "add", "default", "via", v6)

    def bare(self, name: str) -> None:
        """Take a namespace's IPv4 and IPv6 addresses away."""
        self.ip("-n", self._name(name), "addr", "flush", "dev", "eth0")

    def delete(self, name: str) -> None:
        """Remove a namespace's file, as Docker does when a container ends."""
        self.ip("netns", "del", self._name(name))

    def has_link(self, name: str, device: str) -> bool:
        """Return whether there is such an interface."""
        command = ["ip", "-n", self._name(name), "link", "show", device]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def unroute(self, name: str) -> None:
        """Remove the IPv4 default route, as on an `internal` Docker network."""
        self.ip("-n", self._name(name), "route", "del", "default")

    def serve(self, label: str, name: str, protocol: str, port: int, address: str = "::") -> socket.socket:
        """Listen in a namespace, on IPv4 and IPv6; probes that get there are called `label`."""
        sock: socket.socket = inside(self.path(name), lambda: socket.socket(socket.AF_INET6, _kind(protocol)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.setblocking(False)
        if protocol == "tcp":
            sock.listen(512)
        self._servers[label] = sock
        return sock

    def door(self, label: str, name: str) -> None:
        """Listen as the data plane's door does in a namespace, and lead virtual IPs there.

        Probes that get there by UDP are called `label` and `, UDP`.
        """
        path = self.path(name)
        self._servers[f"{label}, UDP"] = netlink.entered(path, lambda: sockets.listen_at_door(DOOR_PORT))
        (sock,) = netlink.entered(path, lambda: listen(DOOR_PORT, transparent=True))
        self._servers[label] = socket.socket(fileno=sock.detach())
        trio.run(routes.add_local_route, path, IPv4Network("240.0.0.0/4"), IPv4Address(WORKLOAD))

    def server(self, label: str) -> socket.socket:
        """Return a server's socket; its calls give up after SECONDS."""
        self._servers[label].settimeout(SECONDS)
        return self._servers[label]

    def interface(self, name: str, device: str) -> int:
        """Return the index of an interface."""
        found: int = inside(self.path(name), lambda: socket.if_nametoindex(device))
        return found

    def link_local(self, name: str) -> str:
        """Return eth0's link-local address."""
        command = ["ip", "-n", self._name(name), "-6", "-j", "addr", "show", "eth0", "scope", "link"]
        listed = orjson.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return str(next(a["local"] for entry in listed for a in entry.get("addr_info", ()) if "local" in a))

    def list_table(self, name: str, table: str = "inet meshbox") -> str:
        """Return our table as nft writes it; nothing when there is none."""
        command = ["nsenter", f"--net={self.path(name)}", "nft", "list", "table", *table.split()]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def close_servers(self) -> None:
        """Stop to listen."""
        while self._servers:
            self._servers.popitem()[1].close()

    def socket(self, name: str, protocol: str, *, v6: bool = False) -> socket.socket:
        """Return a client's socket in a namespace, whose calls give up after SECONDS."""
        family = socket.AF_INET6 if v6 else socket.AF_INET
        sock: socket.socket = inside(self.path(name), lambda: socket.socket(family, _kind(protocol)))
        sock.settimeout(SECONDS)
        return sock

    def probe(self, name: str, protocol: str, address: str, port: int) -> str:
        """Send from a namespace to an address; return who got it, REFUSED or SILENCE.

        Refused is a reset for TCP, and any error at once for UDP.
        """
        with self.socket(name, protocol, v6=":" in address) as sock:
            try:
                sock.connect((address, port))
                if protocol == "udp":
                    sock.send(b"probe")
            except TimeoutError:
                return SILENCE
            except OSError as error:
                return REFUSED if protocol == "udp" or error.errno == errno.ECONNREFUSED else str(error)
            ready, _, _ = select.select([*self._servers.values(), sock], [], [], SECONDS)
            for label, server in self._servers.items():
                if server in ready:
                    self._take(server, protocol)
                    return label
            return REFUSED if ready else SILENCE  # an error waits on the client's own socket

    @staticmethod
    def _take(server: socket.socket, protocol: str) -> None:
        if protocol == "udp":
            server.recv(100)
        else:
            server.accept()[0].close()


def _kind(protocol: str) -> socket.SocketKind:
    return socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
