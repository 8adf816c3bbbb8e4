"""The benchmark's figures as JSON, on the terminal and in the documentation."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Found, Row
from ubmd.version import __version__

START, END = "<!-- figures of scripts/benchmark.py -->", "<!-- end of figures -->"


GROWTH = {
    **{f"step_{kind}_mil53_": "atoms" for kind in ("plain", "uncertain", "biased")},
    **{f"select_{method}_": "candidates" for method in ("max_det", "max_dist", "lcmd", "max_diag")},
}
"""Beginnings of the names of rows that differ in size alone, and what of their details is the size."""


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    info = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    flags = [flag for flag in info.get("flags", "").split() if flag.startswith(("avx", "fma", "amx"))]
    return {
        "cpu": info.get("model name", platform.processor()).strip(),
        "cores": os.cpu_count(),
        "flags": flags,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def as_json(found: Mapping[str, Found], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All figures: ``machine``, ``settings``, ``gflops`` by threads, ``rows``, ``growth``, ``peak_mib`` by group."""
    rates: dict[int, float] = {}
    for group in found.values():
        for threads, rate in group.gflops.items():
            rates[threads] = max(rate, rates.get(threads, 0.0))
    rows = [_entry(row, rates) for group in found.values() for row in group.rows]
    return {
        "version": __version__,
        "machine": machine(),
        "settings": dict(settings),
        "gflops": {str(threads): round(rate, 1) for threads, rate in sorted(rates.items())},
        "rows": rows,
        "skipped": {name: why for group in found.values() for name, why in group.skipped.items()},
        "growth": growth(rows),
        "peak_mib": {name: round(group.peak_mib) for name, group in found.items() if group.peak_mib},
    }


def _entry(row: Row, rates: Mapping[int, float]) -> dict[str, Any]:
    floor = None if row.flop is None or row.threads not in rates else row.flop / rates[row.threads] * 1e-6
    return {
        "name": row.name,
        "ms": float(f"{row.ms:.4g}"),
        "floor_ms": None if floor is None else float(f"{floor:.4g}"),
        "ratio": None if floor is None else float(f"{row.ms / floor:.4g}"),
        "per": row.per,
        "threads": row.threads,
        **row.details,
    }


def growth(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Exponents of time and memory of rows that differ in size alone, from straight lines through their logarithms."""
    out = {}
    for prefix, by in GROWTH.items():
        members = [row for row in rows if row["name"].startswith(prefix)]
        if len(members) < 2:
            continue
        sizes = [row[by] for row in members]
        out[prefix.rstrip("_")] = {
            "from": min(sizes),
            "to": max(sizes),
            "time": _exponent(sizes, [row["ms"] for row in members]),
            "memory": _exponent(sizes, [max(row["memory_mib"], 1.0) for row in members]),
        }
    return out


def _exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 3)


def show(figures: Mapping[str, Any]) -> None:
    """Prints all figures."""
    console = Console()
    console.print(_title(figures))
    table = Table()
    for column in ("row", "per"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "floor, ms", "ratio", "memory, MiB"):
        table.add_column(column, justify="right")
    for row in figures["rows"]:
        table.add_row(row["name"], row["per"], *_cells(row), f"{row['memory_mib']:.0f}" if "memory_mib" in row else "")
    console.print(table)
    for name, fit in figures["growth"].items():
        console.print(
            f"{name}: time ~ n^{fit['time']}, memory ~ n^{fit['memory']} for n = {fit['from']} to {fit['to']}"
        )
    for name, why in figures["skipped"].items():
        console.print(f"{name}: left out, {why}")


def _title(figures: Mapping[str, Any]) -> str:
    where, rates = figures["machine"], figures["gflops"]
    flags = ", ".join(flag for flag in ("avx2", "avx512f", "fma") if flag in where["flags"]) or "no AVX"
    rate = ", ".join(f"{value:.0f} GFLOP/s with {n} thread{'s' * (n != '1')}" for n, value in rates.items())
    return f"{where['gpu'] or where['cpu']}, {where['cores']} cores ({flags}), torch {where['torch']}; {rate}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    floor, ratio = row["floor_ms"], row["ratio"]
    return [_number(row["ms"]), "" if floor is None else _number(floor), "" if ratio is None else f"{ratio:.2f}"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(figures: Mapping[str, Any]) -> str:
    """All figures as tables of a page."""
    lines = [f"{_title(figures)}. Medians; ubmd {figures['version']}.", ""]
    lines += ["| row | per | ms | floor, ms | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for row in figures["rows"]:
        lines.append(f"| `{row['name']}` | {row['per']} | {' | '.join(_cells(row))} |")
    lines += ["", "| growth of | n from | to | time | memory |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, fit in figures["growth"].items():
        lines.append(f"| `{name}` | {fit['from']} | {fit['to']} | n^{fit['time']} | n^{fit['memory']} |")
    if figures["skipped"]:
        lines += ["", "Left out:", "", *(f"- `{name}`: {why}" for name, why in figures["skipped"].items())]
    return "\n".join(lines)


def write_page(figures: Mapping[str, Any], page: Path) -> None:
    """Replaces the tables between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    page.write_text(f"{before}{START}\n\n{markdown(figures)}\n\n{END}{after}", encoding="utf-8")


def write_json(figures: Mapping[str, Any], path: Path) -> None:
    """Writes all figures, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
