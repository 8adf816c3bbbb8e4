"""The exploration of a round of ``experiment=ala2_demo``: walkers that stop one after another."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.rows import Found, Row, Setting
from benchmarks.subjects import Subject, configuration, fitted, molecules
from ubmd.callbacks.calibrate import calibration_data
from ubmd.config import build
from ubmd.dynamics.exploration import Exploration
from ubmd.uncertainty.calibration import CalibrationData, calibrate

NAME = "walkers_demo"


def names(*, quick: bool) -> list[str]:
    """Of the rows of this group."""
    return [NAME]


def measure(setting: Setting, found: Found) -> None:
    """Adds the row: an exploration as the demo has it, from a potential of about its middle."""
    words = ["experiment=ala2_demo"]
    if setting.quick:
        words.append("dynamics.stopping.max_steps=150")
    cfg = configuration(*words)
    size = cfg.data.batch_size
    subject = fitted(cfg, molecules(80), 150 if setting.quick else 1000, batch_size=size, device=setting.device)
    calibrate_as_learnt(subject)
    times, explored = [], None
    for _ in range(1 if setting.quick else 3):
        start = time.perf_counter()
        explored = explore(subject)
        times.append(1e3 * (time.perf_counter() - start) / int(explored.steps.sum()))
    assert explored is not None
    steps = explored.steps
    details = {"walkers": len(steps), "steps": int(steps.sum()), "longest": int(steps.max())}
    flop = None if subject.floors is None else subject.floors.of("biased") * len(explored.numbers)
    found.rows.append(Row(NAME, statistics.median(times), "walker step", flop, setting.threads, details))


def calibrate_as_learnt(subject: Subject) -> None:
    """Sets the factors of the uncertainty by the structures that were held back."""
    module, device = subject.module, subject.module.device
    parts = [
        calibration_data(module, subject.uncertainty, module.predict_step(batch), batch)
        for batch in subject.datamodule.chunks("valid", device)
    ]
    methods = {name: build(subject.cfg, f"calibration.{name}") for name in ("atomic", "total")}
    calibrate(subject.uncertainty, CalibrationData.cat(parts), **methods)


def explore(subject: Subject) -> Exploration:
    """From the structures that were held back, as the round after next would."""
    datamodule = subject.datamodule
    starts = [datamodule.structures[i] for i in datamodule.valid_indices]
    return subject.dynamics(
        subject.potential("biased"), starts, seed=0, round_index=1, dtype=torch.float32, device=subject.module.device
    )
