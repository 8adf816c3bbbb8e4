"""What comes of a figure or table: itself, what it was made of in words, and what could not be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from ubmd.analysis.paper.source import Setting

__all__ = ["Drawn", "NotDrawnError", "described", "footer"]


class NotDrawnError(Exception):
    """A figure or a panel that runs give nothing for; the sentence names what is missing."""


@dataclass(frozen=True)
class Drawn:
    """A figure or a table with its caption."""

    caption: str
    """What it shows, and from which runs, rounds and seeds it was made."""
    figure: Figure | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """Of a table: its contents by the ending of their file."""
    missing: tuple[str, ...] = ()
    """Sentences: what of the paper's figure these runs cannot give."""


def described(settings: Sequence[Setting], what: str, missing: Sequence[str] = ()) -> str:
    """A caption: what is shown, and for each setting its runs, rounds and structures.

    Args:
        settings: that are drawn.
        what: sentences about the panels.
        missing: sentences about what is not there.
    """
    lines = [what, "", "Made from:"]
    for setting in settings:
        for source in setting.sources:
            lines.append(f"- {setting.name}: {source.told}")
    deviations = "Means over seeds; shades are the sample standard deviation."
    alone = [setting.name for setting in settings if len(setting.sources) == 1]
    if alone:
        deviations += f" One run alone has none: {', '.join(alone)}."
    lines += ["", deviations]
    if missing:
        lines += ["", "Not drawn:", *(f"- {sentence}" for sentence in missing)]
    return "\n".join(lines) + "\n"


def footer(figure: Figure, settings: Sequence[Setting]) -> None:
    """A line below a figure: how many runs, seeds and rounds it was made from."""
    sources = [source for setting in settings for source in setting.sources]
    seeds = sorted({str(source.result.seed) for source in sources})
    rounds = max(len(source.result.rounds) for source in sources)
    text = f"runs: {len(sources)}, settings: {len(settings)}, seeds: {', '.join(seeds)}, rounds: up to {rounds}"
    figure.supxlabel(text, fontsize=6.5, color="#8C8C8C", x=0.995, ha="right")
