"""The command lines that a figure is made of, at three sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).parent / "conf"
"""Experiments ``reproduce_SYSTEM_SIZE`` and sweeps over the paper's settings."""

SIZES = ("smoke", "desk", "paper", "tiny")
"""``tiny`` is for the tests: nothing can be learnt from it."""
FIGURES: dict[str, tuple[str, ...]] = {
    "fig2": ("fits",),
    "fig3": ("ala2",),
    "fig4": ("ala2",),
    "table1": ("ala2",),
    "fig5": ("mil53", "mil53_low"),
    "fig6": ("mil53",),
    "fig7": ("mil53_low",),
    "table2": ("mil53", "mil53_low"),
}
"""Parts that each figure is drawn from."""

_SWEEPS = {
    "ala2": ("ala2_biased", "ala2_unbiased"),
    "mil53": ("mil53_biased", "mil53_unbiased", "mil53_metadynamics"),
    "mil53_low": ("mil53_biased", "mil53_unbiased"),
}
_SEEDS = {
    "tiny": {"ala2": 1, "mil53": 1},
    "smoke": {"ala2": 2, "mil53": 1},
    "desk": {"ala2": 2, "mil53": 1},
    "paper": {"ala2": 5, "mil53": 3},
}
# short walkers would stop before a window of 100 steps is full
_SHORT_WINDOW = {("smoke", "mil53_biased"): ("bias.window=20",), ("tiny", "mil53_biased"): ("bias.window=5",)}
_FITS = {
    "tiny": ("size=small", "trainer.max_epochs=-1", "trainer.max_steps=20", "data.batch_size=8"),
    "smoke": ("size=small", "trainer.max_epochs=-1", "trainer.max_steps=400", "data.batch_size=8"),
    "desk": ("trainer.max_epochs=-1", "trainer.max_steps=4000", "data.batch_size=8"),
    "paper": (),
}
_EVERY = {"tiny": 5, "smoke": 5, "desk": 5, "paper": 1}


@dataclass(frozen=True)
class Step:
    """A command line of ``ubmd`` that can be started again until it is finished."""

    words: tuple[str, ...]
    folder: str
    """Below the folder of runs, where its results are."""


def parts_of(figures: Sequence[str]) -> list[str]:
    """What figures are drawn from, each part once."""
    return list(dict.fromkeys(part for figure in figures for part in FIGURES[figure]))


def learning_steps(part: str, size: str) -> list[Step]:
    """Sweeps of ``ubmd learn`` over the paper's settings of a system and over seeds."""
    name, system = f"reproduce_{part}_{size}", part.removesuffix("_low")
    seeds = ",".join(map(str, range(_SEEDS[size][system])))
    out = []
    for sweep in _SWEEPS[part][: 1 if size == "tiny" else None]:
        words = ("learn", "-m", "--config-dir", str(CONFIG), f"experiment={name}", f"sweep=reproduce_{sweep}")
        out.append(Step((*words, f"seed={seeds}", *_SHORT_WINDOW.get((size, sweep), ())), name))
    return out


def fit_steps(size: str, files: Sequence[tuple[Path, Path]], test: Path, *, crystal: bool) -> list[Step]:
    """Fits of ``ubmd train`` with each kind of uncertainty.

    Args:
        size: of the reproduction.
        files: structures to train on and to calibrate with, for each size of the training set.
        test: the test set.
        crystal: with a loss of stress and the cutoff for MIL-53(Al).
    """
    name = f"reproduce_fits_{size}"
    options = [*_FITS[size], f"trainer.check_val_every_n_epoch={_EVERY[size]}"]
    if crystal:
        options += ["training.loss.stress=0.01", "model.cutoff=6.0"]
    out = []
    for train, valid in files:
        data = [f"data.train={train}", f"data.valid={valid}", f"data.test={test}"]
        for method in (["uncertainty=posterior,distance"], ["model=ensemble", "uncertainty=ensemble"]):
            own = [word.replace("model.cutoff", "model.member.cutoff") if len(method) > 1 else word for word in options]
            out.append(Step(("train", "-m", f"name={name}", *data, *method, *own), name))
    return out
