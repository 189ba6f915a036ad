"""Requests over kept connections, and a connection for each request (wrk against nginx)."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bench.contenders import PORT_DIALLED, SOURCE, TCP, TWO, Service, proxies
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import DIRECT_IP, PYTHON, SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 8080
FILE_BYTES = 8 << 20
"""Bytes that each contender must deliver unchanged before it is measured."""
ANSWER_BYTES = 100
"""The least size of an answer with its head."""
UNITS = {"us": 1.0, "ms": 1000.0, "s": 1e6, "m": 6e7}


@contextmanager
def _open(
    lab: Lab, *, connections: int, keep: bool, names: tuple[str, ...] = TCP
) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    with server(lab) as digest, proxies(lab, names, Service(port=PORT)) as targets:
        for name, target in targets.items():
            _verify(lab, name, target, digest)
        yield {
            name: partial(_measure, lab, name, target, connections=connections, keep=keep)
            for name, target in targets.items()
        }


@contextmanager
def server(lab: Lab) -> Iterator[str]:
    """Run the web server; yield the SHA-256 of its file `/file`."""
    (lab.folder / "www").mkdir(exist_ok=True)
    data = os.urandom(FILE_BYTES)
    lab.file("www/file", data)
    text = (
        f"user root; worker_processes 1; daemon off; pid {lab.folder}/web.pid; error_log {lab.folder}/web.err;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; keepalive_requests 1000000000; sendfile on;\n"
        f"server {{ listen {PORT} backlog=4096; root {lab.folder}/www;\n"
        'location = / { return 200 "hello"; } location = /status { stub_status; } } }\n'
    )
    command = ["nginx", "-c", lab.file("web.conf", text)]
    with lab.process("web", SERVER, command, cpu=lab.server_cpu, ready=f"tcp:{PORT}"):
        yield hashlib.sha256(data).hexdigest()


def _verify(lab: Lab, name: str, target: Target, digest: str) -> None:
    try:
        with target.in_place():
            got = _fetch(lab, target.host, target.port, "/file")
    except BenchError as error:
        raise BenchError(f"{name} did not deliver {FILE_BYTES} bytes: {error}") from None
    if got["sha256"] != digest:
        raise BenchError(f"{name} delivered {got['size']} of {FILE_BYTES} bytes, or not the ones that were sent")


def _measure(lab: Lab, name: str, target: Target, *, connections: int, keep: bool) -> Sample:
    before = _served(lab)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{lab.seconds:.0f}s", "--latency"]
    command += [] if keep else ["-H", "Connection: close"]
    command += [f"http://{target.host}:{target.port}/"]
    with target.used() as cpu:
        output = lab.client(command)
    sample = parse(name, output)
    requests = sample.pop("requests")
    served = _served(lab) - before
    if served < requests:
        raise BenchError(f"{name}: wrk counted {requests:.0f} answers, the server {served} requests")
    target.prove(name, cpu, ANSWER_BYTES * requests)
    return sample | cpu.per(requests, "CPU µs")


def parse(name: str, output: str) -> Sample:
    """Return what wrk measured. Raises BenchError when a request failed."""
    requests = int(_find(r"(\d+) requests in", output))
    if "Non-2xx" in output or "Socket errors" in output or not requests:
        raise BenchError(f"{name} did not carry every request:\n{output}")
    return {
        "requests": requests,
        "per second": float(_find(r"Requests/sec:\s+([\d.]+)", output)),
        "p50 µs": _latency("50%", output),
        "p99 µs": _latency("99%", output),
    }


def _served(lab: Lab) -> int:
    return int(_find(r"\n\s*\d+ \d+ (\d+)", str(_fetch(lab, DIRECT_IP, PORT, "/status")["text"])))


def _fetch(lab: Lab, host: str, port: int, path: str) -> dict[str, object]:
    command = [PYTHON, "-m", "bench.clients", "fetch", f"http://{host}:{port}{path}"]
    answer: dict[str, object] = orjson.loads(lab.client(command))
    return answer


def _latency(percentile: str, output: str) -> float:
    number, unit = re.findall(rf"{percentile}\s+([\d.]+)(us|ms|s|m)", output)[0]
    return float(number) * UNITS[unit]


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise BenchError(f"no {pattern!r} in:\n{text}")
    return found.group(1)


FIGURES = (
    Figure(name="per second"),
    Figure(name="p50 µs", better="lower"),
    Figure(name="p99 µs", better="lower"),
    Figure(name="CPU µs", better="lower", digits=2),
    Figure(name="CPU µs (user)", better="lower", digits=2),
    Figure(name="CPU µs (system)", better="lower", digits=2),
)
WORKS = (
    *(
        Work(
            name=f"keepalive-{connections}",
            title=f"Keep-alive requests, {connections} connection{'s' if connections > 1 else ''}",
            figures=FIGURES,
            open=partial(_open, connections=connections, keep=True, names=names),
        )
        for connections, names in ((1, TCP), (32, PORT_DIALLED + SOURCE), (256, TCP))
    ),
    Work(
        name="connections",
        title="A new connection per request, 32 at a time",
        figures=FIGURES,
        open=partial(_open, connections=32, keep=False, names=PORT_DIALLED),
    ),
    *(
        Work(
            name=f"two-{name}",
            title=f"{title}, 64 connections, two workers or threads on two CPUs",
            figures=FIGURES,
            note="Each contender may use two CPUs, which client and server share where there are fewer than four.",
            open=partial(_open, connections=64, keep=keep, names=TWO),
            reference="haproxy nbthread=2",
        )
        for name, title, keep in (
            ("keepalive", "Keep-alive requests", True),
            ("connections", "A new connection per request", False),
        )
    ),
)
