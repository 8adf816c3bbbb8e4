"""Timing of several pieces of work in turn, for the benchmarks beside this file."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def medians(jobs: dict[tuple[str, str], Callable[[], Any]], repeats: int) -> dict[tuple[str, str], float]:
    """Milliseconds of each job, all run in turn so that a slow moment of the machine hits them alike."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    for repeat in range(repeats + 2):
        for key, job in jobs.items():
            start = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 2:
                times[key].append(1e3 * (time.perf_counter() - start))
    return {key: statistics.median(values) for key, values in times.items()}
