"""Small runs one after the other in one process: memory, descriptors, threads and children have to stay flat."""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from drills.small import DEMOS

QUANTITIES = ("rss_mib", "descriptors", "threads", "children")
WARM_UP = 0.15
"""Share of the runs that fills caches and pools and is left out of the fit."""
MEMORY_DRIFT = 0.02
"""Share of the memory that the whole fit may drift by even if its noise is smaller."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--processes-every", type=int, default=5, help="every n-th run labels in worker processes")
    parser.add_argument("--output", type=Path, default=Path("soak"), help="prefix of the .csv and .png")


def run(options: argparse.Namespace) -> int:
    from ubmd.cli.app import compose
    from ubmd.commands.learn import learn

    folder = Path(tempfile.mkdtemp(prefix="ubmd-soak-"))
    os.environ["UBMD_CACHE"] = str(folder / "cache")
    start = time.monotonic()
    rows: list[dict[str, float]] = []
    try:
        with options.output.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["seed", "minutes", *QUANTITIES])
            writer.writeheader()
            for seed in itertools.count():
                if time.monotonic() - start > 60 * options.minutes:
                    break
                demo = list(DEMOS)[seed % len(DEMOS)]
                executor = "processes" if seed % options.processes_every == options.processes_every - 1 else "serial"
                path = folder / "run"
                learn(compose("learn", [*DEMOS[demo], f"executor={executor}", f"seed={seed}"], folder=path))
                shutil.rmtree(path)
                rows.append({"seed": seed, "minutes": (time.monotonic() - start) / 60, **measured()})
                writer.writerow(rows[-1])
                file.flush()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    draw(rows, options.output.with_suffix(".png"))
    return report(rows)


def measured() -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {
        "rss_mib": process.memory_info().rss / 2**20,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
    }


def drift(values: np.ndarray) -> tuple[float, float]:
    """Rise of a straight line over a series, and its standard error from the slopes of eight blocks' means."""
    n = len(values)
    x = np.arange(n) / max(n - 1, 1)
    blocks = [(x[part].mean(), values[part].mean()) for part in np.array_split(np.arange(n), min(8, n)) if len(part)]
    xs, ys = np.array(blocks).T
    if len(xs) < 3:
        return float(np.ptp(values)), 0.0
    slope, offset = np.polyfit(xs, ys, 1)
    left = ys - slope * xs - offset
    error = np.sqrt((left @ left) / (len(xs) - 2) / ((xs - xs.mean()) @ (xs - xs.mean())))
    return float(slope), float(error)


def report(rows: list[dict[str, float]]) -> int:
    steady = rows[int(WARM_UP * len(rows)) :]
    table = Table(title=f"{len(rows)} runs, the last {len(steady)} fitted", caption="drift: over the fitted runs")
    for column in ("quantity", "first", "last", "mean", "max", "drift", "error", "flat"):
        table.add_column(column, justify="left" if column == "quantity" else "right")
    flat = {}
    for name in QUANTITIES:
        values = np.array([row[name] for row in steady])
        rise, error = drift(values)
        allowed = MEMORY_DRIFT * values.mean() if name == "rss_mib" else 1.0
        flat[name] = abs(rise) <= max(3 * error, allowed)
        numbers = (values[0], values[-1], values.mean(), values.max(), rise, error)
        table.add_row(name, *(f"{number:.1f}" for number in numbers), "yes" if flat[name] else "NO")
    console = Console(width=120)
    console.print(table)
    minutes = rows[-1]["minutes"] if rows else 0
    console.print(f"soak: {minutes:.0f} min, {len(rows)} runs, seeds 0 to {len(rows) - 1}; not flat: "
                  f"{', '.join(name for name, good in flat.items() if not good) or 'nothing'}")  # fmt: skip
    return 0 if all(flat.values()) else 1


def draw(rows: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    for axis, name in zip(figure.subplots(len(QUANTITIES), 1, sharex=True), QUANTITIES, strict=True):
        axis.plot([row["minutes"] for row in rows], [row[name] for row in rows], ".", markersize=3)
        axis.set_ylabel("memory (MiB)" if name == "rss_mib" else name)
    axis.set_xlabel("minutes")
    figure.savefig(path, dpi=120)
