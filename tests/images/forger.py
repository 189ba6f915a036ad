"""What a container with CAP_NET_RAW can do on its bridge: talk, or answer, in somebody else's name. Prints JSON.

Runs in a container's network namespace only. Packets are made by hand, so neither the namespace's rules nor its stack
see them. Each attempt sends some ten frames and ends within seconds.

tcp AS TO PORT [SAY]   a TCP conversation with TO: {met: silence | reset | open, got}
udp AS TO PORT SAY     a datagram to TO: {answer}
take NAME FROM PORT    answers FROM in NAME's place for 1.5 s: {asked: connections that came}
claim AS TO            makes itself known at TO as AS, by ARP or neighbour discovery: {mac: where TO is, or null}

Before the word: --iface=eth0, --mac=02:be:ef:00:00:01 (its own where it is `own`), --ttl=64, --tags=0,0 (VLAN tags),
--to=MAC (of TO, who is then not asked, and learns nothing).
"""

from __future__ import annotations

import fcntl
import json  # noqa: TID251 — runs with the system's Python, too
import random
import socket
import struct
import sys
import time
from ipaddress import ip_address

ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
SYN, RST, PSH, ACK, FIN = 2, 4, 8, 16, 1
WAIT = 1.0
"""Seconds for an answer, which comes in a millisecond or not at all."""
TAKING = 1.5

options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
arguments = [word for word in sys.argv[1:] if not word.startswith("--")]
IFACE = options.get("iface", "eth0")
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.bind((IFACE, 0))
OWN = fcntl.ioctl(raw, 0x8927, struct.pack("256s", IFACE.encode()))[18:24]  # SIOCGIFHWADDR
MAC = OWN if options.get("mac") == "own" else bytes.fromhex(options.get("mac", "02:be:ef:00:00:01").replace(":", ""))
TTL = int(options.get("ttl", "64"))
TAGS = [int(tag) for tag in options.get("tags", "").split(",") if tag]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def send(to: bytes, kind: int, body: bytes) -> None:
    """Send a frame, behind the tags."""
    tags = b"".join(struct.pack("!HH", VLAN, tag) for tag in TAGS)
    raw.send(to + MAC + tags + struct.pack("!H", kind) + body)


def pseudo(source, to, protocol: int, length: int) -> bytes:
    """The header that checksums include."""
    if source.version == 4:
        return source.packed + to.packed + struct.pack("!BBH", 0, protocol, length)
    return source.packed + to.packed + struct.pack("!IHBB", length, 0, 0, protocol)


def packet(source, to, protocol: int, body: bytes, ttl: int = TTL) -> tuple[int, bytes]:
    """An IP packet, and its type of frame."""
    if source.version == 6:
        return IPV6, struct.pack("!IHBB", 6 << 28, len(body), protocol, ttl) + source.packed + to.packed + body
    number = random.randrange(65536)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, 0x4000, ttl, protocol, 0)
    head += source.packed + to.packed
    return IPV4, head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def segment(source, to, sport: int, dport: int, seq: int, ack: int, flags: int, data: bytes = b"") -> bytes:
    """A TCP segment."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 64000, 0, 0) + data
    total = checksum(pseudo(source, to, 6, len(head)) + head)
    return head[:16] + struct.pack("!H", total) + head[18:]


def datagram(source, to, sport: int, dport: int, data: bytes) -> bytes:
    """A UDP datagram."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    return head[:6] + struct.pack("!H", checksum(pseudo(source, to, 17, len(head)) + head) or 0xFFFF) + head[8:]


def neighbour(kind: int, source, to, target, flags: int = 0) -> bytes:
    """A solicitation (135) or advertisement (136) with our MAC."""
    option = bytes([1 if kind == 135 else 2, 1]) + MAC
    body = struct.pack("!BBHI", kind, 0, 0, flags) + target.packed + option
    total = checksum(pseudo(source, to, 58, len(body)) + body)
    return body[:2] + struct.pack("!H", total) + body[4:]


def frames(seconds: float):
    """Yield (type, body) of the frames that come, without tags."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            frame = raw.recv(70000)
        except TimeoutError:
            return
        kind, at = struct.unpack("!H", frame[12:14])[0], 14
        while kind == VLAN:
            kind, at = struct.unpack("!H", frame[at + 2 : at + 4])[0], at + 4
        if frame[6:12] != MAC:
            yield kind, frame[at:], frame[6:12]


def claim(source, to):
    """Ask in its name where the other one is: it both learns our MAC and answers."""
    if source.version == 4:
        body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + MAC + source.packed + bytes(6) + to.packed
        send(b"\xff" * 6, ARP, body)
        for kind, answer, _ in frames(WAIT):
            if kind == ARP and answer[6:8] == b"\0\2" and answer[14:18] == to.packed and answer[24:28] == source.packed:
                return answer[8:14]
        return None
    group = ip_address(bytes.fromhex("ff0200000000000000000001ff") + to.packed[13:])
    kind, body = packet(source, group, 58, neighbour(135, source, group, to), 255)
    send(b"\x33\x33" + group.packed[12:], kind, body)
    for kind, answer, _ in frames(WAIT):
        if kind == IPV6 and answer[6] == 58 and answer[40] == 136 and answer[48:64] == to.packed:
            return answer[66:72] if len(answer) >= 72 else answer[58:64]
    return None


def received(source, protocol: int, dport: int, seconds: float):
    """Return the next segment or datagram from there to our port."""
    for kind, body, _ in frames(seconds):
        if kind == IPV4 and source.version == 4 and body[9] == protocol and body[12:16] == source.packed:
            start, end = (body[0] & 15) * 4, struct.unpack("!H", body[2:4])[0]
        elif kind == IPV6 and source.version == 6 and body[6] == protocol and body[8:24] == source.packed:
            start, end = 40, 40 + struct.unpack("!H", body[4:6])[0]
        else:
            continue
        if struct.unpack("!H", body[start + 2 : start + 4])[0] == dport:
            return body[start:end]
    return None


def tcp(source, to, port: int, say: bytes = b"") -> dict:
    """Hold a conversation."""
    mac = claim(source, to)
    if mac is None:
        return {"met": "silence"}
    sport, seq = random.randrange(30000, 60000), random.randrange(1 << 31)

    def out(seq: int, ack: int, flags: int, data: bytes = b"") -> None:
        send(mac, *packet(source, to, 6, segment(source, to, sport, port, seq, ack, flags, data)))

    out(seq, 0, SYN)
    answer = received(to, 6, sport, WAIT)
    if answer is None:
        return {"met": "silence"}
    if answer[13] & RST:
        return {"met": "reset"}
    theirs, seq = struct.unpack("!I", answer[4:8])[0] + 1 & 0xFFFFFFFF, seq + 1
    out(seq, theirs, ACK)
    if say:
        out(seq, theirs, PSH | ACK, say)
        seq += len(say)
    got = b""
    while (answer := received(to, 6, sport, WAIT)) is not None and not answer[13] & RST:
        data, at = answer[(answer[12] >> 4) * 4 :], struct.unpack("!I", answer[4:8])[0]
        if at == theirs:
            got, theirs = got + data, theirs + len(data) & 0xFFFFFFFF
        out(seq, theirs, ACK)
        if got.endswith(say) and got:
            break
    out(seq, theirs, RST | ACK)
    return {"met": "open", "got": got.decode(errors="replace")[:200]}


def udp(source, to, port: int, say: bytes) -> dict:
    """Send a datagram and wait for what comes back."""
    mac = bytes.fromhex(options["to"].replace(":", "")) if "to" in options else claim(source, to)
    if mac is None:
        return {"answer": None}
    sport = random.randrange(30000, 60000)
    send(mac, *packet(source, to, 17, datagram(source, to, sport, port, say)))
    answer = received(to, 17, sport, WAIT)
    return {"answer": answer[8:].decode(errors="replace") if answer else None}


def take(name, asker, port: int) -> dict:
    """Say that the name is here, and count who then comes."""
    asked, end = 0, time.monotonic() + TAKING
    while time.monotonic() < end:
        if name.version == 4:
            body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + MAC + name.packed + bytes(6) + asker.packed
            send(b"\xff" * 6, ARP, body)
        else:
            everybody = ip_address("ff02::1")
            flags = 0x20000000  # override
            send(
                b"\x33\x33\0\0\0\1",
                *packet(
                    ip_address("fe80::beef"),
                    everybody,
                    58,
                    neighbour(136, ip_address("fe80::beef"), everybody, name, flags),
                    255,
                ),
            )
        for kind, body, _ in frames(0.1):
            start = (body[0] & 15) * 4 if kind == IPV4 else 40
            to, protocol = (body[16:20], body[9]) if kind == IPV4 else (body[24:40], body[6])
            if to == name.packed and protocol == 6 and body[start + 13] & SYN:
                asked += struct.unpack("!H", body[start + 2 : start + 4])[0] == port
    return {"asked": asked}


def main() -> None:
    """Do what the words say."""
    word, source, to, *rest = arguments
    source, to = ip_address(source), ip_address(to)
    if word == "claim":
        mac = claim(source, to)
        found = {"mac": mac.hex(":") if mac else None}
    elif word == "take":
        found = take(source, to, int(rest[0]))
    else:
        said = rest[1].encode() if len(rest) > 1 else b""
        found = (tcp if word == "tcp" else udp)(source, to, int(rest[0]), said)
    print(json.dumps(found))  # noqa: T201 — it is the answer


if __name__ == "__main__":
    main()
