"""A row of the benchmark, and what all rows are measured with."""

from __future__ import annotations

import ctypes
import importlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
PRODUCT = 2048
"""Rows and columns of the matrix product that the machine's rate is taken from."""


@dataclass(frozen=True)
class Setting:
    """What is to be measured, and how."""

    names: tuple[str, ...]
    """Of the rows that are wanted."""
    quick: bool = False
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    ms: float
    """Median."""
    per: str
    """What is done in that time."""
    flop: float | None = None
    """That the method cannot do without."""
    threads: int = 1
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What came of a group of rows."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why there is no row of a name."""
    gflops: dict[int, float] = field(default_factory=dict)
    """Rate of matrix products by the number of threads."""
    peak_mib: float = 0.0


def run_group(module: str, setting: Setting) -> Found:
    """Measures the rows of a group; to be run in a process of its own, whose memory is then the group's."""
    torch.set_num_threads(setting.threads)
    found = Found(gflops={setting.threads: product_rate(setting.device)})
    importlib.import_module(f"benchmarks.{module}").measure(setting, found)
    torch.set_num_threads(setting.threads)
    found.gflops[setting.threads] = max(found.gflops[setting.threads], product_rate(setting.device))
    found.peak_mib = peak_memory()
    return found


def product_rate(device: str = "cpu", repeats: int = 3) -> float:
    """GFLOP/s of float32 matrix products with the present number of threads."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device=device) for _ in range(2))
    return 2 * PRODUCT**3 / median_ms(lambda: a @ b, repeats=repeats, device=device) * 1e-6


def median_ms(job: Callable[[], Any], *, repeats: int, warm: int = 1, device: str = "cpu") -> float:
    """Median time of a job in ms, after some runs that do not count."""
    times = []
    for repeat in range(warm + repeats):
        start = time.perf_counter()
        job()
        wait(device)
        if repeat >= warm:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def wait(device: str) -> None:
    """Until the device has done all that it was asked to do."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


def settled_memory() -> float:
    """Resident memory in MiB after what is free was given back; from here on :func:`peak_memory` counts anew."""
    if sys.platform != "linux":
        return peak_memory()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # see man proc: resets the peak
    return _status("VmRSS")


def peak_memory() -> float:
    """Largest resident memory in MiB so far."""
    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
