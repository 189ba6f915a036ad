"""A container's client for the tests. Prints one line of JSON; errors are the names of errno values.

tcp HOST PORT N        N connections, one after the other: [{answer | error, ms}, …]; answer: what the server says
udp HOST PORT N [MS]   N datagrams, each from a socket of its own; waits MS (default 2000) for each answer
dials PROTOCOL/HOST/PORT/N …   the two above for several targets: {target: [{answer | error, ms}, …], …}
talk HOST PORT N LINE …   says the lines on each of N connections: [what was answered to the end | error, …]
resolve NAME           {addresses | error}
question PROTOCOL HEX …   each DNS message, in hexadecimal, to the first server of resolv.conf: [answer | error, …]
hold HOST PORT N       N connections at once, a word through each: {open, answered, error}
sum HOST PORT BYTES    sends BYTES, shuts down its sending half, reads to the end: {answer, sent, sha}
get HOST PORT BYTES    HTTP download: {length, sha, wanted}
loop HOST PORT SECONDS [MS]   connections one after the other, MS (default 0) apart: {count, answers, addresses,
                       failures: [{error, begin, end}, …]}
ask HOST PORT SECONDS [MS]    the same with datagrams from one socket, each waiting 1 s for its answer
requests HOST PORT SECONDS [MS]   the same, each from a new socket, which asks three times before it is a failure
crowd loop|ask HOST PORT SECONDS N   N of these at once, 20 ms apart: what they met, together
keep HOST PORT TCP UDP   holds so many connections and UDP sockets open, prints who answered each, and sends a word
                       through each every 100 ms until the end of its input: [{answer, words, last, error}, …]
until HOST PORT SECONDS   from the end of its input, tries again and again until answered: {at}, or null after SECONDS
reset HOST PORT        asks for a reset: {error}; leaves another connection by a reset: {seen}
"""

from __future__ import annotations

import errno
import hashlib
import json  # noqa: TID251 — the image has only Debian's Python
import selectors
import socket
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

PATTERN = bytes(range(251)) * 4096
TIMEOUT = 10.0
NEVER = threading.Event()


def word(error: OSError) -> str:
    """Return `ECONNREFUSED` and the like."""
    if isinstance(error, socket.gaierror):
        return {v: k for k, v in vars(socket).items() if k.startswith("EAI_")}.get(error.errno, str(error))
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timeout"
    return errno.errorcode.get(error.errno or 0, str(error))


def tcp(host: str, port: str, count: str) -> list[dict[str, Any]]:
    """One connection after the other."""
    found = []
    for _ in range(int(count)):
        begin = time.monotonic()
        result: dict[str, Any] = {}
        try:
            with socket.create_connection((host, int(port)), TIMEOUT) as connection:
                result["answer"] = connection.recv(1000).decode().strip()
        except OSError as error:
            result["error"] = word(error)
        result["ms"] = (time.monotonic() - begin) * 1000
        found.append(result)
    return found


def udp(host: str, port: str, count: str, wait: str = "2000") -> list[dict[str, Any]]:
    """One datagram after the other."""
    found = []
    for number in range(int(count)):
        begin = time.monotonic()
        result: dict[str, Any] = {}
        with socket.socket(type=socket.SOCK_DGRAM) as connection:
            connection.settimeout(int(wait) / 1000)
            try:
                connection.connect((host, int(port)))
                connection.send(str(number).encode())
                result["answer"] = connection.recv(1000).decode()
            except OSError as error:
                result["error"] = word(error)
        result["ms"] = (time.monotonic() - begin) * 1000
        found.append(result)
    return found


def dials(*targets: str) -> dict[str, list[dict[str, Any]]]:
    """Several targets, one after the other; one that keeps silent is dialled once."""
    found: dict[str, list[dict[str, Any]]] = {}
    for target in targets:
        protocol, host, port, count = target.split("/")
        results = found.setdefault(target, [])
        while len(results) < int(count) and "timeout" not in (one.get("error") for one in results):
            results += {"tcp": tcp, "udp": udp}[protocol](host, port, "1")
    return found


def talk(host: str, port: str, count: str, *lines: str) -> list[str]:
    """Ask and be answered."""
    found = []
    for _ in range(int(count)):
        try:
            with socket.create_connection((host, int(port)), TIMEOUT) as connection:
                connection.sendall("".join(f"{line}\r\n" for line in lines).encode())
                found.append(read_all(connection).decode())
        except OSError as error:
            found.append(word(error))
    return found


def resolve(name: str) -> dict[str, Any]:
    """Ask as programs do."""
    try:
        return {"addresses": sorted({entry[4][0] for entry in socket.getaddrinfo(name, 1)})}
    except OSError as error:
        return {"error": word(error)}


def question(protocol: str, *messages: str) -> list[str]:
    """Ask as a resolver of the program's own does."""
    settings = Path("/etc/resolv.conf").read_text().splitlines()
    server = next(line.split()[1] for line in settings if line.startswith("nameserver"))
    return [exchange(protocol, server, bytes.fromhex(message)) for message in messages]


def exchange(protocol: str, server: str, message: bytes) -> str:
    """Send one DNS message and return what comes back (by TCP each has its length before it)."""
    with socket.socket(type={"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}[protocol]) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect((server, 53))
            if protocol == "udp":
                connection.send(message)
                return connection.recv(1 << 16).hex()
            connection.sendall(len(message).to_bytes(2, "big") + message)
            with connection.makefile("rb") as answer:
                return answer.read(int.from_bytes(answer.read(2), "big")).hex()
        except OSError as error:
            return word(error)


def hold(host: str, port: str, count: str) -> dict[str, Any]:
    """Open all, then talk through each."""
    chosen = selectors.DefaultSelector()
    connections: list[socket.socket] = []
    answered = 0
    try:
        for _ in range(int(count)):
            connections.append(socket.create_connection((host, int(port)), TIMEOUT))  # noqa: PERF401 — count them
        for number, connection in enumerate(connections):
            connection.sendall(b"%06d\n" % number)
            chosen.register(connection, selectors.EVENT_READ, [number, b""])
        deadline = time.monotonic() + 3 * TIMEOUT
        while answered < len(connections) and time.monotonic() < deadline:
            for key, _ in chosen.select(1):
                assert isinstance(key.fileobj, socket.socket)
                key.data[1] += key.fileobj.recv(1000)
                if key.data[1].endswith(b" %06d\n" % key.data[0]):
                    answered += 1
                    chosen.unregister(key.fileobj)
    except OSError as error:
        return {"open": len(connections), "answered": answered, "error": word(error)}
    return {"open": len(connections), "answered": answered, "error": None}


def loop(host: str, port: str, seconds: str, pause: str = "0") -> dict[str, Any]:
    """Connect and hear a name, again and again. Times are of the monotonic clock, which host and container share."""
    count, answers, addresses, failures = 0, Counter[str](), Counter[str](), []
    ending = time.monotonic() + float(seconds)
    while (begin := time.monotonic()) < ending:
        count += 1
        stage = "connect"
        try:
            address = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4]
            addresses[str(address[0])] += 1
            with socket.create_connection((str(address[0]), int(port)), TIMEOUT) as connection:
                stage = "read"
                answer = connection.recv(1000).decode().split(" ")[0]
                if not answer:
                    raise ConnectionResetError(errno.ECONNRESET, "ended without a word")
                answers[answer] += 1
        except OSError as error:
            failures.append({"error": f"{stage} {word(error)}", "begin": begin, "end": time.monotonic()})
        NEVER.wait(int(pause) / 1000)
    return {"count": count, "answers": answers, "addresses": addresses, "failures": failures}


def requests(host: str, port: str, seconds: str, pause: str = "0") -> dict[str, Any]:
    """Ask over UDP again and again, as programs do: what is not answered within a second is asked once more."""
    count, answers, addresses, failures = 0, Counter[str](), Counter[str](), []
    ending = time.monotonic() + float(seconds)
    while (begin := time.monotonic()) < ending:
        count += 1
        (found,) = udp(host, port, "1", "1000")
        for _ in range(2):
            if "error" in found:
                (found,) = udp(host, port, "1", "1000")
        if "error" in found:
            failures.append({"error": found["error"], "begin": begin, "end": time.monotonic()})
        else:
            answers[found["answer"].split(" ")[0]] += 1
        NEVER.wait(int(pause) / 1000)
    return {"count": count, "answers": answers, "addresses": addresses, "failures": failures}


class Kept:
    """A connection, or a UDP socket, that stays open."""

    def __init__(self, host: str, port: int, kind: socket.SocketKind) -> None:
        self._tcp = kind is socket.SOCK_STREAM
        self._socket = socket.socket(type=kind)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect((host, port))
        if not self._tcp:
            self._socket.send(b"")
        self.found: dict[str, Any] = {
            "answer": self._until(b" ").decode().strip(),
            "words": 0,
            "last": 0.0,
            "error": None,
        }

    def talk(self, over: threading.Event) -> None:
        """Send a word and await it, until this is over or fails."""
        try:
            while not over.wait(0.1):
                sent = b"%06d\n" % self.found["words"]
                self._socket.sendall(sent)
                self._until(sent)
                self.found.update(words=self.found["words"] + 1, last=time.monotonic())
        except OSError as error:
            self.found["error"] = word(error)

    def _until(self, end: bytes) -> bytes:
        got = b""
        while not got.endswith(end):
            part = self._socket.recv(1000)
            if not part and self._tcp:
                raise ConnectionResetError(errno.ECONNRESET, "ended")
            got = got + part if self._tcp else part
        return got


def keep(host: str, port: str, tcp_count: str, udp_count: str) -> list[dict[str, Any]]:
    """Talk through what stays open."""
    kinds = [socket.SOCK_STREAM] * int(tcp_count) + [socket.SOCK_DGRAM] * int(udp_count)
    kept = [Kept(host, int(port), kind) for kind in kinds]
    print(json.dumps([one.found["answer"] for one in kept]), flush=True)  # noqa: T201 — the first of two answers
    over = threading.Event()
    threads = [threading.Thread(target=one.talk, args=(over,)) for one in kept]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return [one.found for one in kept]


def ask(host: str, port: str, seconds: str, pause: str = "0") -> dict[str, Any]:
    """Ask from one socket, again and again, and count who answers."""
    count, answers, failures = 0, Counter[str](), []
    ending = time.monotonic() + float(seconds)
    with socket.socket(type=socket.SOCK_DGRAM) as connection:
        connection.settimeout(1)
        connection.connect((host, int(port)))
        while (begin := time.monotonic()) < ending:
            count += 1
            try:
                connection.send(b"%d" % count)
                answer, number = connection.recv(1000).decode().split(" ")
                while int(number) < count:  # that of a former one, which took too long
                    answer, number = connection.recv(1000).decode().split(" ")
                answers[answer] += 1
            except OSError as error:
                failures.append({"error": word(error), "begin": begin, "end": time.monotonic()})
            NEVER.wait(int(pause) / 1000)
    return {"count": count, "answers": answers, "failures": failures}


def crowd(verb: str, host: str, port: str, seconds: str, number: str) -> dict[str, Any]:
    """Many clients at once."""
    work = {"loop": loop, "ask": ask}[verb]
    met: list[dict[str, Any]] = []
    clients = [threading.Thread(target=lambda: met.append(work(host, port, seconds, "20"))) for _ in range(int(number))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    answers = Counter[str]()
    for one in met:
        answers += one["answers"]
    counts = [one["count"] for one in met]
    failures = [failure for one in met for failure in one["failures"]]
    return {"clients": len(met), "counts": counts, "answers": answers, "failures": failures}


def until(host: str, port: str, seconds: str) -> dict[str, Any]:
    """Connect until that works. The time is of the monotonic clock, which host and container share."""
    sys.stdin.read()
    ending = time.monotonic() + float(seconds)
    while time.monotonic() < ending:
        try:
            with socket.create_connection((host, int(port)), TIMEOUT) as connection:
                if connection.recv(1000):
                    return {"at": time.monotonic()}
        except OSError:
            NEVER.wait(0.002)
    return {"at": None}


def pattern(length: int) -> bytes:
    """Return the bytes 0, 1, …, 250, 0, … of that length."""
    return (PATTERN * (length // len(PATTERN) + 1))[:length]


def read_all(connection: socket.socket) -> bytes:
    """Read to the end."""
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def sum(host: str, port: str, length: str) -> dict[str, Any]:  # noqa: A001 — it is the word on the command line
    """Half-close."""
    data = pattern(int(length))
    with socket.create_connection((host, int(port)), TIMEOUT) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection).decode()
    return {"answer": answer, "sent": len(data), "sha": hashlib.sha256(data).hexdigest()}


def get(host: str, port: str, length: str) -> dict[str, Any]:
    """HTTP download."""
    sha, seen = hashlib.sha256(), 0
    with socket.create_connection((host, int(port)), TIMEOUT) as connection:
        connection.sendall(f"GET /{length} HTTP/1.0\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        while part := connection.recv(1 << 20):
            seen += len(part)
            sha.update(part)
    return {"length": seen, "sha": sha.hexdigest(), "wanted": hashlib.sha256(pattern(int(length))).hexdigest()}


def reset(host: str, port: str) -> dict[str, Any]:
    """Be reset, and reset."""
    found = {}
    with socket.create_connection((host, int(port)), TIMEOUT) as connection:
        connection.sendall(b"reset\n")
        try:
            found["error"] = repr(connection.recv(10))
        except OSError as error:
            found["error"] = word(error)
    with socket.create_connection((host, int(port)), TIMEOUT) as connection:
        connection.sendall(b"half a line")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + TIMEOUT
    found["seen"] = "nothing"
    while found["seen"] == "nothing" and time.monotonic() < deadline:
        with socket.create_connection((host, int(port)), TIMEOUT) as connection:
            connection.sendall(b"seen\n")
            found["seen"] = read_all(connection).decode()
    return found


VERBS = {
    v.__name__: v
    for v in (tcp, udp, dials, talk, resolve, question, hold, loop, ask, requests, crowd, keep, until, sum, get, reset)
}
print(json.dumps(VERBS[sys.argv[1]](*sys.argv[2:])))  # noqa: T201 — its answer
