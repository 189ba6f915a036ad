"""Which resolvers of the host questions are passed on to."""

from __future__ import annotations

from appliance.drivers.host.resolvers import HostResolvers, parse


def test_reads_ipv4_nameservers_in_order() -> None:
    """Comments, options and IPv6 servers are passed over; at most three count, as in the C library."""
    text = "# x\nsearch a.b\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver 10.0.0.2 # two\noptions ndots:1\n"
    assert parse(text) == (("10.0.0.1", 53), ("10.0.0.2", 53))
    assert len(parse("nameserver 10.0.0.1\n" * 5)) == 3


def test_follows_the_file(tmp_path) -> None:
    """A changed file counts at once; one that has gone leaves the former resolvers."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 10.0.0.1\n")
    resolvers = HostResolvers(str(path))
    assert resolvers() == (("10.0.0.1", 53),)
    other = tmp_path / "new"
    other.write_text("nameserver 10.0.0.2\n")
    other.rename(path)
    assert resolvers() == (("10.0.0.2", 53),)
    path.unlink()
    assert resolvers() == (("10.0.0.2", 53),)


def test_fixed_resolvers_win(tmp_path) -> None:
    """Configured resolvers take the place of the file's."""
    assert HostResolvers("/nonexistent", fixed=[("10.9.9.9", 5353)])() == (("10.9.9.9", 5353),)


def test_own_servers_take_nobodys_place(tmp_path) -> None:
    """Ours do not count among the three, or with three of them on top no resolver would be left."""
    path = tmp_path / "resolv.conf"
    path.write_text("".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 7)))
    own = [("10.0.0.1", 53), ("10.0.0.2", 53), ("10.0.0.3", 53), ("10.0.0.4", 5353)]
    assert HostResolvers(str(path), own=own)() == (("10.0.0.4", 53), ("10.0.0.5", 53), ("10.0.0.6", 53))


def test_systemd_resolved_is_passed_over(tmp_path) -> None:
    """Where resolv.conf names only its stub, the resolvers behind it are asked: through it we could ask ourselves."""
    stub, behind = tmp_path / "resolv.conf", tmp_path / "behind"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\n")
    resolvers = HostResolvers(str(stub), resolved=str(behind))
    assert resolvers() == (("127.0.0.53", 53),)
    behind.write_text("nameserver 127.66.0.53\nnameserver 10.0.0.1\n")
    resolvers = HostResolvers(str(stub), resolved=str(behind))
    assert resolvers() == (("127.66.0.53", 53), ("10.0.0.1", 53))
    behind.write_text("nameserver 10.0.0.2\n")
    assert resolvers() == (("10.0.0.2", 53),)
    stub.write_text("nameserver 127.0.0.53\nnameserver 10.0.0.9\n")
    assert resolvers() == (("127.0.0.53", 53), ("10.0.0.9", 53))
