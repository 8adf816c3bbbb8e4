"""Alanine dipeptide with the paper's network: walker steps and training steps."""

from __future__ import annotations

import os
import statistics

from benchmarks.rows import Found, Row, Setting, product_rate
from benchmarks.subjects import Subject, configuration, fitted, molecules
from benchmarks.walking import Walk, walk_rows
from ubmd.errors import InputError

WALKERS = (1, 8, 32, 128)
KINDS = ("plain", "uncertain", "biased")
EVERY = "bias.every=4"


def names(*, quick: bool) -> list[str]:
    """Of the rows of this group."""
    counts = WALKERS[:-1] if quick else WALKERS
    steps = [f"step_{kind}_{n}" for n in counts for kind in KINDS]
    every = [f"step_biased_every4_{n}" for n in (1, 8)]
    train = ["train_step_32", "train_step_32_2threads"]
    return [*train, *steps, *every]


def measure(setting: Setting, found: Found) -> None:
    """Adds the rows."""
    structures = molecules(107 if setting.quick else 284)
    steps = 24 if setting.quick else 80
    cfg = configuration()
    if "train_step_32" in setting.names:
        subject = fitted(cfg, structures, steps, device=setting.device, threads=setting.threads)
        found.rows.append(training_row("train_step_32", subject, setting.threads))
    if any(name.startswith("step_") for name in setting.names):
        # small batches: a potential of many steps, which holds molecules together
        many = 120 if setting.quick else 300
        subject = fitted(cfg, structures, many, batch_size=8, device=setting.device, threads=setting.threads)
        chosen = [walk for walk in walks(subject, setting, found) if walk.name in setting.names]
        passes = 2 if setting.quick else 4
        walk_rows(subject, chosen, found, passes=passes, threads=setting.threads, device=setting.device)
    if "train_step_32_2threads" not in setting.names:
        return
    if (os.cpu_count() or 1) < 2 or setting.device != "cpu":
        found.skipped["train_step_32_2threads"] = "needs two cores"
        return
    subject = fitted(cfg, structures, steps, threads=2)
    found.gflops[2] = product_rate()
    found.rows.append(training_row("train_step_32_2threads", subject, 2))


def training_row(name: str, subject: Subject, threads: int) -> Row:
    """Of the fit that made ``subject``."""
    times = subject.step_ms[len(subject.step_ms) // 5 :]  # what is compiled or allocated first does not count
    structures, atoms = subject.datamodule.batch_size, len(subject.datamodule.structures[0])
    flop = None if subject.floors is None else subject.floors.training * structures * atoms
    details = {"structures": structures, "atoms": atoms}
    return Row(name, statistics.median(times), "training step", flop, threads, details)


def walks(subject: Subject, setting: Setting, found: Found) -> list[Walk]:
    """All walks of the paper's network."""
    starts = subject.datamodule.structures
    out = []
    for n in WALKERS:
        # no more than 100 evaluations: then the bias, which costs the same before, begins to drive walkers apart
        steps, repeats = (min(max(80 // n, 3), 20), 3) if setting.quick else (min(max(160 // n, 3), 15), 5)
        out += [Walk(f"step_{kind}_{n}", kind, starts, n, steps, repeats) for kind in KINDS]
        if n in (1, 8):
            out.append(Walk(f"step_biased_every4_{n}", "biased", starts, n, steps, repeats, (EVERY,), every=4))
    try:
        configuration(EVERY)
    except InputError:
        reason = f"{EVERY} is no option of this version"
        found.skipped |= {walk.name: reason for walk in out if walk.every > 1 and walk.name in setting.names}
        out = [walk for walk in out if walk.every == 1]
    return out
