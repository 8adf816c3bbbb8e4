"""FLOP that a method cannot do without, counted in products of matrices; all else is left out.

Per atom, with a readout of layers (d_l, d_(l+1)), W = sum d_l d_(l+1) weights, W' those of all layers but the first,
D = sum (d_l + d_(l+1)), and p projections:

===========================  =====================================================================  ==================
energy and forces            the layers and the gradient by their inputs                            2 W + 2 W
with both uncertainties      projections of inputs and of output gradients; posterior product       + 2 p D + 2 p p
biased                       gradient of u by inputs and output gradients, through these (all       + 2 p D + 2 W' + 2 W
                             layers but the first have made some) and through the layers
training                     the loss' gradient by the weights, through both passes of energy       3 (2 W + 2 W)
                             and forces: two products more for each that they have
===========================  =====================================================================  ==================

The posterior of a structure is one product for all its atoms and is left out. For the paper's network (910-512-512-1,
512 projections) these are 2.9, 6.5, 11.5 and 8.7 MFLOP.
"""

from __future__ import annotations

from collections.abc import Sequence


class Floors:
    """FLOP per atom, see the module's text.

    Args:
        layers: (d_l, d_(l+1)) of every layer.
        projections: p.
    """

    def __init__(self, layers: Sequence[tuple[int, int]], projections: int):
        weights = sum(n_in * n_out for n_in, n_out in layers)
        later = sum(n_in * n_out for n_in, n_out in layers[1:])
        sketch = 2 * projections * sum(n_in + n_out for n_in, n_out in layers)
        self.plain = 2 * weights + 2 * weights
        self.uncertain = self.plain + sketch + 2 * projections**2
        self.biased = self.uncertain + sketch + 2 * later + 2 * weights
        self.training = 3 * self.plain

    def of(self, kind: str, every: int = 1) -> float:
        """Of a step that is ``plain``, ``uncertain`` or ``biased``, the latter at every n-th step alone."""
        return (getattr(self, kind) + (every - 1) * self.plain) / every
