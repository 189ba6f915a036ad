"""`make bench`, or `python -m bench [--only NAME …] [--quick]` as root."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from bench import peers
from bench.bars import verdicts
from bench.builds import AGAIN, compared, former
from bench.errors import BenchError
from bench.lab import lab
from bench.report import from_json, markdown, to_json
from bench.runner import run_works
from bench.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.figures import Result, Work
    from bench.lab import Build

HERE = Path(__file__).resolve().parent
ROUNDS, SECONDS = 5, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 3, 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; 1 when a contender did not carry the traffic, 2 on wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for work in WORKS:
            print(f"{work.name:14} {work.title}")
        return 0
    if options.report:
        return _report([orjson.loads(path.read_bytes()) for path in options.report])
    chosen = _chosen(parser, options.only)
    if os.geteuid():
        parser.error("namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves no contender running
    try:
        return _measure(chosen, options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="WORK", help="names of works; * stands for anything")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS:.0f} s, some works smaller; never written to RESULTS.md",
    )
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument(
        "--against",
        metavar="REVISION",
        help="measure another revision of meshbox beside this one, and this one twice as a control (A/A)",
    )
    parser.add_argument("--list", action="store_true", help="show the works and end")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON and plots (bench/results)")
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="JSON", help="measure nothing: write RESULTS.md from these runs"
    )
    return parser


def _chosen(parser: argparse.ArgumentParser, only: Sequence[str] | None) -> list[Work]:
    strangers = [pattern for pattern in only or () if not any(fnmatch(work.name, pattern) for work in WORKS)]
    if strangers:
        parser.error(f"no work matches {' '.join(strangers)}; --list shows their names")
    return [work for work in WORKS if not only or any(fnmatch(work.name, pattern) for pattern in only)]


def _measure(chosen: Sequence[Work], options: argparse.Namespace) -> int:
    """Measure, and write down what there is, whatever ends it. Raises BenchError when nothing can be measured."""
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    seconds = QUICK_SECONDS if options.quick else SECONDS
    date = datetime.now(UTC)
    how = {"date": f"{date:%Y-%m-%d %H:%M} UTC", "rounds": rounds, "seconds": seconds, "quick": options.quick}
    peers.install()
    facts = peers.machine()
    results: list[Result] = []
    try:
        with former(options.against) if options.against else nullcontext() as other:
            builds = (other, AGAIN) if other else ()
            with lab(seconds=seconds, quick=options.quick, builds=builds) as it:
                for result in run_works(chosen, it, rounds=rounds):
                    results.append(result)
                    _show(result)
    finally:
        run = to_json(results, facts, **how)
        if results:
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{date:%Y%m%d-%H%M%S}.json"
            path.write_bytes(orjson.dumps(run, option=orjson.OPT_INDENT_2))
            print(f"\n{path}")
    if other:
        _compare(results, other)
        return 1 if any(result.error for result in results) else 0
    _plot([result for result in results if not result.error], options.out)
    if len(results) == len(WORKS) and not options.quick:
        _report([run])
    for verdict in verdicts(results):
        bar = verdict.bar
        reached = "" if verdict.reached is None else f" {verdict.reached:.2f},"
        print(f"{verdict.word.upper():12} {bar.work} {bar.figure}:{reached} bar {bar.limit}")
    failed = [result.work.name for result in results if result.error]
    if failed:
        print(f"bench: no figures for {', '.join(failed)}: not every contender did its work", file=sys.stderr)
    return 1 if failed else 0


def _compare(results: Sequence[Result], other: Build) -> None:
    for result in results:
        for name in result.samples:
            for line in compared(result, name, other):
                print(line)


def _show(result: Result) -> None:
    if result.error:
        print(f"\nFAILED {result.work.name}: {result.error}", file=sys.stderr, flush=True)
        return
    print(f"\n{result.title} ({result.work.name})", flush=True)
    for name in result.samples:
        cells = [f"{f.name} {result.median(name, f.name) or 0:,.{f.digits}f}" for f in result.work.figures]
        ratio = result.ratio(name, result.work.figures[0].name, result.work.reference)
        print(f"  {name:13} {' | '.join(cells)}" + ("" if ratio is None else f"  x{ratio:.2f}"), flush=True)


def _report(runs: Sequence[dict[str, Any]]) -> int:
    if any(run["how"].get("quick") for run in runs):
        print("bench: a quick run is no report: it does less, and shorter", file=sys.stderr)
        return 2
    (HERE / "RESULTS.md").write_text(markdown(from_json(runs, WORKS), runs[-1]["machine"]))
    print(HERE / "RESULTS.md")
    return 0


def _plot(results: list[Result], folder: Path) -> None:
    from bench.plots import draw  # noqa: PLC0415 — matplotlib takes a second to import

    draw(results, folder)


if __name__ == "__main__":
    sys.exit(main())
