"""Posterior uncertainty of Bayesian linear regression in feature space (Eqs. 4 and 25)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ubmd.errors import InputError

__all__ = ["Posterior", "gram_matrix", "whitening_matrix"]


def gram_matrix(features: Tensor) -> Tensor:
    """Phi^T Phi [d, d] of features [n, d], in float64."""
    features = features.detach().double()
    return features.T @ features


def whitening_matrix(gram: Tensor, count: int, regularisation: float) -> Tensor:
    """The matrix W with Cov(S, S') = (W phi) . (W phi') (Eq. 25) and u = |W phi| (Eq. 4).

    Training features are rescaled so that their mean squared norm is 1, which gives the regularisation
    lambda a meaning of its own; W contains that factor, so it acts on features as they come.

    Args:
        gram: [d, d] Phi^T Phi of the training features, float64.
        count: number of rows of Phi.
        regularisation: lambda.

    Returns:
        W [d, d] float64, lower triangular.

    Raises:
        InputError: if there are no features, they are not finite or all zero, or lambda is so small
            that Phi^T Phi + lambda^2 I is numerically singular.
    """
    if count < 1:
        raise InputError("the posterior needs the features of at least one training structure, got none")
    # the trace is the sum of the squared norms
    squared_norm = gram.diagonal().sum().item() / count
    if not math.isfinite(squared_norm) or squared_norm <= 0:
        raise InputError(f"training features have mean squared norm {squared_norm}; check the training")
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram / squared_norm + regularisation**2 * identity)
    if info.item() != 0:
        raise InputError(
            f"uncertainty.regularisation={regularisation} is too small for {count} training features; "
            "0.01 is the usual value"
        )
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return regularisation * squared_norm**-0.5 * inverse


class Posterior(nn.Module):
    """Posterior standard deviation u^2 = lambda^2 phi^T (Phi^T Phi + lambda^2 I)^(-1) phi (Eq. 4).

    Phi and phi are rescaled so that the training features have a mean squared norm of 1. Without any
    knowledge u is the norm of the rescaled features; every training structure takes from it.

    Args:
        n_features: d, width of the features.
        regularisation: lambda.

    Raises:
        InputError: if ``regularisation`` is not positive.
    """

    whitening: Tensor

    def __init__(self, n_features: int, regularisation: float = 0.01):
        super().__init__()
        if not 0 < regularisation < math.inf:
            raise InputError(f"uncertainty.regularisation must be a positive number, got {regularisation}")
        self.regularisation = float(regularisation)
        self.fitted = False
        self.register_buffer("whitening", torch.zeros(n_features, n_features))

    def fit(self, features: Tensor) -> None:
        """Conditions on training features [n, d]; forgets what it was fitted to before."""
        self.fit_chunks([features])

    @torch.no_grad()
    def fit_chunks(self, chunks: Iterable[Tensor]) -> None:
        """As :meth:`fit`, for features in parts [n, d], of which only the sum of Gram matrices is kept."""
        size, count = self.whitening.shape[0], 0
        gram = torch.zeros(size, size, dtype=torch.float64, device=self.whitening.device)
        for features in chunks:
            gram += gram_matrix(features)
            count += len(features)
        self.whitening.copy_(whitening_matrix(gram, count, self.regularisation))
        self.fitted = True

    def whiten(self, features: Tensor) -> Tensor:
        """Coordinates x [n, d] of features [n, d], such that Cov(S, S') = x . x' (Eq. 25).

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        if not self.fitted:
            raise RuntimeError("the posterior has not been fitted: call fit() or load a fitted state first")
        return features @ self.whitening.T

    def forward(self, features: Tensor) -> Tensor:
        """Uncertainties u [n] of features [n, d]; the gradient is zero where the features are.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        return torch.linalg.vector_norm(self.whiten(features), dim=-1)

    # Kept outside the buffers because reading a flag from the device would halt every walker step.
    def get_extra_state(self) -> Tensor:
        """Whether it is fitted, as part of ``state_dict``."""
        return torch.tensor(self.fitted)

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` gave."""
        self.fitted = bool(state)
