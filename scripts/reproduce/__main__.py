"""The paper, reproduced: runs what its figures need and draws them.

    python scripts/reproduce smoke                        # everything, in minutes
    python scripts/reproduce desk fig3 table1             # a night; started again, it goes on
    python scripts/reproduce paper fig3 -- hydra/launcher=slurm trainer.accelerator=gpu

What stands behind -- goes to every ``ubmd learn`` and ``ubmd train``: hydra/launcher=joblib runs jobs side by side.
Runs are in $UBMD_RUNS or ./runs, figures in its reproduce_SIZE. A command that failed does not keep the next ones from
running.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from command_lines import FIGURES, SIZES, Step, fit_steps, learning_steps, parts_of
from fig2_files import fig2_files

from ubmd.errors import InputError

_SHORT = 3
"""Exit code of a run that ended before it had the data that it was to have: it can be drawn."""
_SIGNALS = (130, 138, 143)


def main() -> int:
    """Runs the steps in order, then draws; the exit code is that of the first failure."""
    parser = argparse.ArgumentParser(
        "reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"{', '.join(FIGURES)}; all of them by default")
    parser.add_argument("--data", type=Path, metavar="FILE", help="labelled MIL-53(Al) structures for Fig. 2")
    parser.add_argument("--test", type=Path, metavar="FILE", help="with --data: their test set")
    words = sys.argv[1:]
    own, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = parser.parse_args(own)
    unknown = [name for name in options.figures if name not in FIGURES]
    if unknown:
        parser.error(f"{unknown[0]} is no figure; choose among {', '.join(FIGURES)}")
    try:
        return _reproduce(options.size, options.figures or list(FIGURES), options.data, options.test, more)
    except InputError as error:
        parser.error(str(error))


def _reproduce(size: str, figures: list[str], data: Path | None, test: Path | None, more: list[str]) -> int:
    root = Path(os.environ.get("UBMD_RUNS") or "runs")
    cache = Path(os.environ.get("UBMD_CACHE") or "data").absolute()
    started, failures = time.monotonic(), []
    steps: list[Step] = []
    for part in parts_of(figures):
        if part == "fits":
            files, tested, crystal = fig2_files(size, cache / f"reproduce_fig2_{size}", data, test)
            steps += fit_steps(size, files, tested, crystal=crystal)
        else:
            steps += learning_steps(part, size)
    for step in steps:
        code = _run([*step.words, *more])
        if code in _SIGNALS:
            return code
        if code not in (0, _SHORT):
            failures.append(code)
    folders = dict.fromkeys(str(root / step.folder) for step in steps if (root / step.folder).is_dir())
    drawn = ["all"] if len(figures) == len(FIGURES) else figures
    failures += [
        code for code in [_run(["figures", *drawn, *folders, "--output", str(root / f"reproduce_{size}")])] if code
    ]
    print(f"{len(steps)} steps, {len(failures)} failed, {(time.monotonic() - started) / 60:.1f} min", flush=True)
    return failures[0] if failures else 0


def _run(words: list[str]) -> int:
    print(f"\n$ ubmd {shlex.join(words)}", flush=True)
    return subprocess.run([sys.executable, "-m", "ubmd", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
