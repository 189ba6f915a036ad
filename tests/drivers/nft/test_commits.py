"""What nft says, in one line; and which commits are ours."""

from __future__ import annotations

import pytest

from appliance.drivers.nft.commits import OwnCommits, explain, refused

SYNTAX = """/dev/stdin:3:23-23: Error: syntax error, unexpected '}', expecting hook
 chain x { type bogus }
                      ^
/dev/stdin:4:1-1: Error: syntax error, unexpected '}'
}
^
"""
REFUSED = """/dev/stdin:1:15-18: Error: Could not process rule: No such file or directory
add rule inet nope nope accept
              ^^^^
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SYNTAX, "line 3, column 23: syntax error, unexpected '}', expecting hook in `chain x { type bogus }`"),
        (
            REFUSED,
            "line 1, column 15: Could not process rule: No such file or directory in `add rule inet nope nope accept`",
        ),
        ("Error: redefinition of symbol 'a'\ndefine a = 1\n", "redefinition of symbol 'a'"),
        ("nsenter: cannot open /x: No such file or directory\n", "nsenter: cannot open /x: No such file or directory"),
        ("netlink: Error: cache initialization failed\n", "netlink: Error: cache initialization failed"),
        ("/dev/stdin:1:1-3: Error: short", "line 1, column 1: short"),
        (" \n", "nft ended without a message"),
        ("", "nft ended without a message"),
    ],
)
def test_the_first_error_with_its_place(error, line):
    """One line that says where and what; a message of another shape is passed on as it is."""
    assert explain(error) == line


def test_a_huge_faulty_line_is_cut():
    """A map of 10,000 elements does not belong in a log."""
    assert len(explain("/dev/stdin:1:1-2: Error: bad\n" + "x" * 100_000)) < 250


def test_the_latest_processes_are_known():
    """Process ids come again, so old ones are forgotten; one that comes again is young."""
    own = OwnCommits()
    for pid in range(1000):
        own.add(pid)
        own.add(0)
    assert 999 in own
    assert 0 in own
    assert 1 not in own


def test_a_refusal_says_where():
    """In the host's namespace, or in that of a file."""
    assert str(refused(None, "Error: no")) == "nft in the host's namespace: no"
    assert str(refused("/run/netns/a", "Error: no")) == "nft in network namespace /run/netns/a: no"
