"""Other builds of meshbox, measured beside this one in the same run: a former revision, and this one once more.

The latter is the control (A/A): a difference to the former revision counts only if it exceeds the control's.
"""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.lab import PYTHON, ROOT, Build, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.figures import Result


AGAIN = Build(label="again")
"""The build that is measured, once more."""


@contextmanager
def former(revision: str) -> Iterator[Build]:
    """Check out and compile another revision of this repository. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="meshbox-bench-build-") as folder:
        Path(folder).chmod(0o755)
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            raise BenchError(f"cannot check out {revision}: {archive.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        compiled = f"{folder}/build/compiled"
        run(["env", "-C", folder, PYTHON, "packaging/compile_dataplane.py", "--copy", compiled], timeout=300.0)
        path = f"PYTHONPATH={compiled}:{folder}"
        yield Build(label=revision, prefix=("env", "-C", folder, path, "PYTHONSAFEPATH=1"))


def compared(result: Result, name: str, build: Build) -> Iterator[str]:
    """Yield a line for each figure of a contender: the median ratio to another build, and what the control spans.

    Ratios are taken round by round, as both builds have their turns one after another.
    """
    for figure in result.work.figures:
        ratios = result.ratios(name, figure.name, f"{name}, {build.label}")
        control = result.ratios(name, figure.name, f"{name}, {AGAIN.label}")
        if ratios and control:
            low, middle, high = min(control), median(ratios), max(control)
            word = "within" if low <= middle <= high else "OUTSIDE"
            yield (
                f"{result.work.name:14} {name:13} {figure.name:20} x{middle:.3f} against {build.label},"
                f" {word} the control's {low:.3f} to {high:.3f} (median {median(control):.3f})"
            )
