"""How fast ubmd is on this machine: walker steps, training steps and all else that a round does.

    python scripts/benchmark.py [--quick] [--only PATTERN ...] [--threads 1] [--json FILE] [--apax PYTHON]
    python scripts/benchmark.py --page FILE       (writes the figures of a JSON file into docs/speed.md)

Leave the machine alone meanwhile. Times are medians, of one thread unless a row's name says otherwise, and of the code
that ``ubmd learn`` runs; a walker step is a step of the batch divided by its walkers. ``floor_ms`` is what the FLOP
that the method cannot do without (``benchmarks/floors.py``) would take at the rate of a float32 matrix product in the
same run, and ``ratio`` how many times longer it takes. ``--apax`` also times apax, the Gaussian-moment code in JAX
(``pip install apax``), in the environment of that Python. Patterns are those of file names: ``--only 'step_*_8'``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks import report
from benchmarks.apax import apax_rows
from benchmarks.rows import Found, Setting, run_group

GROUPS = ("alanine", "products", "methods", "demo", "processes", "crystals", "others")
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


def main() -> int:
    options = arguments()
    if options.page:
        report.write_page(json.loads(options.page.read_text(encoding="utf-8")), PAGE)
        return 0
    found: dict[str, Found] = {}
    for group in GROUPS:
        known = importlib.import_module(f"benchmarks.{group}").names(quick=options.quick)
        names = [name for name in known if any(fnmatchcase(name, pattern) for pattern in options.only)]
        if not names:
            continue
        setting = Setting(tuple(names), options.quick, options.threads, options.device)
        # memory and what is compiled belong to a group
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            try:
                found[group] = process.submit(run_group, group, setting).result()
            except Exception as error:  # the other groups have cost time
                traceback.print_exc()
                found[group] = Found(skipped=dict.fromkeys(names, f"the group {group} failed: {error}"))
    if options.apax:
        found["apax"] = apax_rows(options.apax, quick=options.quick)
    if not found:
        raise SystemExit(f"no row is called {' or '.join(options.only)}")
    settings = {name: getattr(options, name) for name in ("quick", "threads", "device", "only")}
    figures = report.as_json(found, settings)
    report.show(figures)
    if options.json:
        report.write_json(figures, options.json)
    return int(any(" failed: " in why for why in figures["skipped"].values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less than two minutes: fewer rows, fewer repeats")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="rows by their names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--apax", metavar="PYTHON", help="of an environment with apax")
    parser.add_argument("--page", type=Path, metavar="FILE", help="measure nothing; write a JSON file's figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
