"""`make bench`, or `python -m bench [--only NAME …] [--quick]` as root."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from bench import peers
from bench.bars import verdicts
from bench.figures import BenchError, Result
from bench.lab import lab
from bench.report import from_json, markdown, to_json
from bench.runner import run_works
from bench.works import WORKS

if TYPE_CHECKING:
    from bench.figures import Work
    from bench.lab import Lab

HERE = Path(__file__).resolve().parent
ROUNDS, SECONDS = 5, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 3, 1.0


def main() -> int:
    """Measure and report; 1 when a contender did not carry the traffic, 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="WORK", help="names of works; * stands for anything")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS:.0f} s")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument("--list", action="store_true", help="show the works and end")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON and plots (bench/results)")
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="JSON", help="measure nothing: write RESULTS.md from these runs"
    )
    options = parser.parse_args()
    if options.list:
        for work in WORKS:
            print(f"{work.name:14} {work.title}")
        return 0
    if options.report:
        return _report(options.report)
    chosen = [w for w in WORKS if not options.only or any(fnmatch(w.name, pattern) for pattern in options.only)]
    if not chosen:
        parser.error(f"no work matches {' '.join(options.only)}; --list shows their names")
    if os.geteuid():
        parser.error("namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves no contender running
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    seconds = QUICK_SECONDS if options.quick else SECONDS
    date = datetime.now(UTC)
    how = {"date": f"{date:%Y-%m-%d %H:%M} UTC", "rounds": rounds, "seconds": seconds, "quick": options.quick}
    try:
        peers.install()
        facts = peers.machine()
        with lab(seconds=seconds, quick=options.quick) as it:
            results, failed = _measure(chosen, it, rounds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{date:%Y%m%d-%H%M%S}.json"
    path.write_bytes(orjson.dumps(to_json(results, facts, **how), option=orjson.OPT_INDENT_2))
    print(f"\n{path}")
    _plot(results, options.out)
    if len(results) == len(WORKS):
        _report([path])
    for verdict in verdicts(results):
        bar = verdict.bar
        word = "met   " if verdict.met else "MISSED"
        print(f"{word} {bar.work} {bar.figure}: {verdict.reached:.2f}, bar {bar.limit}")
    if failed:
        print(f"bench: no figures for {', '.join(failed)}: not every contender did its work", file=sys.stderr)
    return 1 if failed else 0


def _measure(chosen: list[Work], it: Lab, rounds: int) -> tuple[list[Result], list[str]]:
    """Return the results, and the names of the works that failed."""
    results: list[Result] = []
    failed: list[str] = []
    for result in run_works(chosen, it, rounds=rounds):
        if result.error:
            failed.append(result.work.name)
            print(f"\nFAILED {result.work.name}: {result.error}", file=sys.stderr, flush=True)
        else:
            results.append(result)
            _show(result)
    return results, failed


def _show(result: Result) -> None:
    print(f"\n{result.work.title} ({result.work.name})", flush=True)
    for name in result.samples:
        cells = [f"{f.name} {result.median(name, f.name) or 0:,.{f.digits}f}" for f in result.work.figures]
        ratio = result.ratio(name, result.work.figures[0].name, result.work.reference)
        print(f"  {name:13} {' | '.join(cells)}" + ("" if ratio is None else f"  x{ratio:.2f}"), flush=True)


def _report(paths: list[Path]) -> int:
    runs = [orjson.loads(path.read_bytes()) for path in paths]
    results = from_json(runs, WORKS)
    (HERE / "RESULTS.md").write_text(markdown(results, runs[-1]["machine"]))
    print(HERE / "RESULTS.md")
    return 0


def _plot(results: list[Result], folder: Path) -> None:
    from bench.plots import draw  # noqa: PLC0415 — matplotlib takes a second to import

    draw(results, folder)


if __name__ == "__main__":
    sys.exit(main())
