"""nft(8), entered by nsenter(1), and libnftables in a helper process. Text only: JSON crashes nft 1.0.6."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import orjson
import structlog
import trio

from appliance.drivers.nft.commits import OWN, explain
from appliance.drivers.nft.helper_main import LENGTH, frame
from appliance.drivers.process import Finished, run
from appliance.errors import HostError, RetryError
from appliance.model.names import Protocol
from appliance.model.network import HostRuleset, Netns, NetnsId, Route, VisitorRules, WorkloadRuleset
from appliance.render.ruleset import TABLE, render_host, render_workload

log = structlog.get_logger()

AT_ONCE = max(2, min(8, len(os.sched_getaffinity(0)) // 2))
"""Namespaces pushed to at the same time. Each push keeps a core busy, and what carries traffic needs one too: on two
cores, four at once stalled it for 8 ms, two for 5 ms."""

TIMEOUT = 10.0
"""Seconds that one transaction may take; 10,000 routes take 0.15."""

OLDEST = (0, 9, 6)
"""The first nft whose maps of `address . port` values serve the redirect (DESIGN §2)."""

SHORT = 4096
"""Most characters of a transaction that the helper takes, if it is running. Starting nsenter and nft is nearly all of
what they take for one element (6 ms of CPU, of which the transaction is 1); for a whole ruleset it is little, and they
can do several at once."""

IDLE = 30.0
"""Seconds without a command after which the helper ends until the next one: it holds 17 MB and starts in 0.1 s."""

HELPER = (sys.executable, "-P", "-m", "appliance.drivers.nft.helper_main")
"""What starts the helper. Not from the working directory (-P): whoever may write there would be root here."""

DOOR_RULES = "rules of workloads with a door"
"""The name of what a host can do without."""

RESTART = (0.1, 0.5, 2.0, 5.0)
"""Seconds until the helper is started again after its 1st, 2nd, … death since a command went through."""


class Nft:
    """Rules inside network namespaces."""

    def __init__(self, helper: NftHelper | None = None, *, at_once: int = AT_ONCE, timeout: float = TIMEOUT) -> None:
        self._helper = helper
        self._timeout = timeout
        self._slots = trio.CapacityLimiter(at_once)
        self.pushed = 0
        """Transactions that were applied."""
        self.failed = 0
        """Transactions that were not, each of which left the former rules."""

    async def push(self, netns_path: str, text: str) -> None:
        """Apply a transaction in the namespace, as a whole or not at all; an empty one is nothing to do.

        Raises RetryError with nft's own message, HostError when nft or nsenter is not installed.
        """
        if not text:
            return
        try:
            if self._helper is not None and self._helper.pid is not None and len(text) <= SHORT:
                await self._helper.command(text, netns_path)
            else:
                await self._checked(netns_path, ["-f", "-"], text)
        except RetryError:
            self.failed += 1
            raise
        self.pushed += 1

    async def dry_run(self, netns_path: str, text: str) -> None:
        """Let nft and the kernel check a transaction without applying it. Raises as `push` does."""
        await self._checked(netns_path, ["-c", "-f", "-"], text)

    async def list_table(self, netns_path: str) -> str | None:
        """Return our table in the namespace as nft writes it, counters included; None when there is none.

        Takes about 0.15 s with 10,000 routes: for people, not for every pass. Raises RetryError, HostError.
        """
        done = await self._run(netns_path, ["list", "table", *TABLE.split()], "")
        if done.code == 0:
            return done.output
        if done.error.startswith("Error: No such file or directory"):
            return None
        raise _refused(netns_path, done.error)

    async def _checked(self, netns_path: str, arguments: list[str], text: str) -> None:
        done = await self._run(netns_path, arguments, text)
        if done.code != 0:
            raise _refused(netns_path, done.error)

    async def _run(self, netns_path: str, arguments: list[str], text: str) -> Finished:
        command = ["nsenter", f"--net={netns_path}", "nft", *arguments]
        async with self._slots:
            done = await run(command, stdin=text.encode(), timeout=self._timeout, began=OWN.add)
        if done.code == 127:  # nsenter's answer when it cannot execute the command
            raise HostError("nft is not installed; apt-get install nftables")
        return done


def _refused(netns_path: str | None, error: str) -> RetryError:
    place = "the host's namespace" if netns_path is None else f"network namespace {netns_path}"
    return RetryError(f"nft in {place}: {explain(error)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NftFeatures:
    """What the host's nft is and can do."""

    version: tuple[int, ...]
    features: frozenset[str]
    """Which of our rulesets, by their names in `samples` and DOOR_RULES, nft and the kernel accept."""


class NftHelper:
    """Text commands, carried out one after another by a helper process (nfthelper.py)."""

    def __init__(self, *, timeout: float = TIMEOUT, idle: float = IDLE) -> None:
        self._timeout = timeout
        self._idle = idle
        self._turn = trio.Lock()
        self._process: trio.Process | None = None
        self._used = 0.0
        """When the last command began or ended, on Trio's clock."""
        self._awake = trio.Event()
        """Set while a helper runs, or should."""
        self._started = trio.Event()
        self._fault: str | None = None
        """Why libnftables cannot be used, in the helper's words."""
        self._deaths = 0
        self.restarts = 0
        """How often the helper has died and was started again."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the helper running while it is used. Started once it works or has said why it cannot."""
        while True:
            self._awake.set()
            try:
                idle = await self._serve(task_status)
            finally:
                self._process = None
            task_status = trio.TASK_STATUS_IGNORED
            if idle:
                await self._awake.wait()
                continue
            pause = RESTART[min(self._deaths, len(RESTART) - 1)]
            self._deaths += 1
            self.restarts += 1
            log.warning("the helper around libnftables has died; starting it again", seconds=pause)
            await trio.sleep(pause)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> bool:
        """Start a helper and wait until it has ended (False) or was idle for long enough (True)."""
        process = await trio.lowlevel.open_process(HELPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        OWN.add(process.pid)
        try:
            greeting = await _receive(process)
            self._fault = None if greeting is None else greeting["fault"]
            self._process = process
            self._used = trio.current_time()
            self._started.set()
            task_status.started()
            while not self._is_idle():
                with trio.move_on_at(max(self._used, trio.current_time() - self._idle / 2) + self._idle):
                    await process.wait()
                    return False
            self._awake = trio.Event()
            return True
        finally:
            self._started = trio.Event()
            with trio.CancelScope(shield=True):
                await _kill(process)

    @property
    def pid(self) -> int | None:
        """Return the process id of the helper that a command would find; None if there is none that works."""
        if self._process is None or self._fault is not None or not self._awake.is_set():
            return None
        return self._process.pid

    def _is_idle(self) -> bool:
        return not self._turn.locked() and trio.current_time() >= self._used + self._idle

    async def command(self, text: str, netns_path: str | None = None) -> str:
        """Carry out a transaction and return what it prints; an empty one is nothing to do.

        In the host's namespace, or in another one that has a path. Raises RetryError with nft's own message, or when
        the helper has died or hangs; HostError when the binding or the library is missing.
        """
        return await self._ask(text, netns_path, dry=False) if text else ""

    async def dry_run(self, text: str) -> None:
        """Let nft and the kernel check a transaction, not apply it, in the host's namespace. Raises as `command`."""
        await self._ask(text, None, dry=True)

    async def _ask(self, text: str, netns_path: str | None, *, dry: bool) -> str:
        async with self._turn:
            if not self._awake.is_set():
                self._awake.set()
                with trio.move_on_after(self._timeout):
                    await self._started.wait()
            process = self._process
            if self._fault is not None:
                raise HostError(self._fault)
            if process is None or process.stdin is None:
                raise RetryError("the helper around libnftables is just being started again")
            OWN.add(process.pid)
            answer = None
            try:
                with trio.move_on_after(self._timeout):
                    await process.stdin.send_all(frame({"text": text, "dry": dry, "netns": netns_path}))
                    answer = await _receive(process)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # told below, as when it dies later
            finally:
                if answer is None:
                    self._process = None
                    process.kill()  # cancelled, hanging or dead: what it would answer is not for the next command
            if answer is None:
                raise RetryError("the helper around libnftables died or hung; it is started again")
            self._used = trio.current_time()
        self._deaths = 0
        if answer["code"] != 0:
            raise _refused(netns_path, answer["error"])
        return str(answer["output"])

    async def probe(self) -> NftFeatures:
        """Return nft's version, and which of our rulesets it and the kernel accept, by a dry run on the host.

        Raises HostError with what to install when nft, the binding or the library is missing or too old, or when a
        ruleset is refused.
        """
        done = await run(["nft", "--version"], timeout=self._timeout)
        found = re.search(r"v(\d+)\.(\d+)(?:\.(\d+))?", done.output)
        version = tuple(int(part or 0) for part in found.groups()) if found else ()
        if version < OLDEST:
            raise HostError(
                f'nft is "{done.output.strip()}", older than {".".join(map(str, OLDEST))}; apt-get install nftables'
            )
        for name, text in samples():
            try:
                await self.dry_run(text)
            except RetryError as error:
                raise HostError(
                    f"this host cannot do the {name}: {error}; a kernel with nf_tables is needed"
                ) from error
        features = {name for name, _ in samples()}
        try:
            await self.dry_run(door_sample())
            features.add(DOOR_RULES)
        except RetryError as error:
            log.debug("no doors", cause=str(error))
        return NftFeatures(version=version, features=frozenset(features))


async def _receive(process: trio.Process) -> Any:
    """Return the next frame from the helper; None at its end."""
    stdout = process.stdout
    data = bytearray()
    while stdout is not None and (chunk := await stdout.receive_some()):
        data += chunk
        if len(data) >= LENGTH.size and len(data) == LENGTH.size + LENGTH.unpack_from(data)[0]:
            return orjson.loads(memoryview(data)[LENGTH.size :])
    return None


async def _kill(process: trio.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await stream.aclose()


def _bare() -> WorkloadRuleset:
    return WorkloadRuleset(
        netns=Netns(id=NetnsId(device=0, inode=0), path=""),
        proxy=IPv4Address("192.0.2.1"),
        dns_port=53,
        vip_range=IPv4Network("240.0.0.0/4"),
        proxy_ports=(20000, 29999),
    )


def door_sample() -> str:
    """Return a ruleset with a door."""
    return render_workload(replace(_bare(), door=True))


def samples() -> tuple[tuple[str, str], ...]:
    """Return rulesets that use everything but doors, and ones that use as little as can be, by name."""
    a, n = IPv4Address, IPv4Network
    bare = _bare()
    vips, ports = bare.vip_range, bare.proxy_ports
    full = replace(
        bare,
        routes=frozenset(Route(vip=a("240.0.0.1"), port=80, protocol=p, proxy_port=20001) for p in Protocol),
        gateways=frozenset({a("192.0.2.1"), IPv6Address("2001:db8::1")}),
        hosts=frozenset({a("198.51.100.1")}),
        subnets=frozenset({n("192.0.2.0/24"), IPv6Network("2001:db8::/64")}),
        published=frozenset({(Protocol.TCP, 80)}),
    )
    some = frozenset({a("192.0.2.2")})
    host = HostRuleset(
        proxy_ports=ports,
        dns_port=53,
        workloads=some,
        published=frozenset({(a("192.0.2.2"), Protocol.TCP, 80)}),
        peers=some,
        machines=some,
        dns_addresses=some,
        subnets=frozenset({n("192.0.2.0/24")}),
        listening=frozenset({(Protocol.TCP, 20001)}),
    )
    route = Route(vip=a("240.0.0.1"), port=80, protocol=Protocol.TCP, proxy_port=20001)
    visiting = replace(
        host,
        visitors=VisitorRules(
            vip_range=vips, host_routes=frozenset({route}), guest_routes=frozenset({route}), guests=some
        ),
    )
    return (
        ("rules of workloads", render_workload(full)),
        ("rules of workloads without routes", render_workload(bare)),
        ("rules of the host", render_host(host)),
        ("rules of the host with visitors", render_host(visiting)),
        ("rules of the host without workloads", render_host(HostRuleset(proxy_ports=ports, dns_port=53))),
    )
