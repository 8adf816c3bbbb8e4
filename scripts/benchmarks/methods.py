"""Eight walkers with every kind of uncertainty, for the paper's network and the demo's."""

from __future__ import annotations

from benchmarks.rows import Found, Setting
from benchmarks.subjects import configuration, fitted, molecules
from benchmarks.walking import Walk, walk_rows

UNCERTAINTIES = {
    "posterior": ("uncertainty=posterior",),
    "distance": ("uncertainty=distance",),
    "posterior_last_layer": ("uncertainty=posterior", "uncertainty/features=last_layer"),
    "distance_last_layer": ("uncertainty=distance", "uncertainty/features=last_layer"),
    "ensemble": ("method=ensemble",),
}
SIZES = ("paper", "small")
WALKERS = 8


def names(*, quick: bool) -> list[str]:
    """Of the rows of this group; a quick run leaves them out."""
    return [] if quick else [_name(kind, u, size) for size in SIZES for u in UNCERTAINTIES for kind in _kinds(u)]


def measure(setting: Setting, found: Found) -> None:
    """Adds the rows."""
    structures = molecules(72)
    for size in SIZES:
        for uncertainty, words in UNCERTAINTIES.items():
            wanted = [kind for kind in _kinds(uncertainty) if _name(kind, uncertainty, size) in setting.names]
            if not wanted:
                continue
            cfg = configuration(f"size={size}", *words)
            subject = fitted(cfg, structures, 150, batch_size=8, device=setting.device)
            walks = [
                Walk(_name(kind, uncertainty, size), kind, structures, WALKERS, steps=15, repeats=5) for kind in wanted
            ]
            walk_rows(subject, walks, found, passes=2, threads=setting.threads, device=setting.device)


def _kinds(uncertainty: str) -> tuple[str, ...]:
    # energies and forces alone depend on the network, not on the uncertainty
    plain = ("plain",) if uncertainty in ("posterior", "ensemble") else ()
    return (*plain, "uncertain", "biased")


def _name(kind: str, uncertainty: str, size: str) -> str:
    return f"{size}_{uncertainty}_{kind}_{WALKERS}"
