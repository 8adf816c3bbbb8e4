"""Radial functions of the Gaussian-moment descriptor (Eq. 12)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["GaussianBasis", "cosine_cutoff"]


def cosine_cutoff(distance: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """(1 + cos(pi r / r_c)) / 2 inside the cutoff and 0 beyond, with its slope; both vanish at r_c."""
    frequency = math.pi / cutoff
    phase = distance.clamp(max=cutoff) * frequency
    slope = torch.where(distance < cutoff, -0.5 * frequency * torch.sin(phase), 0.0)
    return 0.5 * (1 + torch.cos(phase)), slope


class GaussianBasis(nn.Module):
    """Normalised Gaussians exp(-b (r - mu_k)^2) on an equidistant grid, times the cosine cutoff.

    b = n_gauss^2 / r_c^2, mu_k = r_min + k (r_c - r_min) / n_gauss for k = 0 .. n_gauss - 1, and the
    prefactor (2 b / pi)^(1/4) gives each Gaussian a unit L2 norm.

    Args:
        n_gauss: number of Gaussians.
        cutoff: r_c, Å.
        r_min: position of the first centre, Å.
    """

    centres: Tensor

    def __init__(self, n_gauss: int, cutoff: float, r_min: float = 0.5):
        super().__init__()
        self.cutoff = cutoff
        self.width = n_gauss**2 / cutoff**2
        self.norm = (2 * self.width / math.pi) ** 0.25
        centres = r_min + torch.arange(n_gauss, dtype=torch.float64) * (cutoff - r_min) / n_gauss
        self.register_buffer("centres", centres.to(torch.get_default_dtype()), persistent=False)

    def forward(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [..., k] Å to values and slopes (1/Å), [..., n_gauss, k] each."""
        offset = distance[..., None, :] - self.centres[:, None]
        bells = self.norm * torch.exp(-self.width * offset.square())
        cutoff, slope = (c[..., None, :] for c in cosine_cutoff(distance, self.cutoff))
        values = bells * cutoff
        return values, bells * slope - 2 * self.width * offset * values
