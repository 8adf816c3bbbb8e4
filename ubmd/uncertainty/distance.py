"""Distance to the nearest training features (Eq. 3), and the points that stand for all of them (Eq. 27)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ubmd.errors import InputError

__all__ = ["Distance", "farthest_points", "first_largest", "nearest", "squared_distances"]

BLOCK = 2**24
"""Most numbers in a table of distances."""
_TIE = 1e-12
"""Relative difference below which two values are the same and the lower index wins."""
_CANDIDATES = 4
"""Points whose distance is computed afresh, see :class:`Distance`."""


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [n, m] of rows [n, d] and [m, d], summed from the differences: none is lost to rounding."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For each row [n, d] of ``a`` the squared distance [n] to the nearest row [m, d] of ``b``, and its index [n].

    Of rows equally near the first one counts. The nearest are looked up as :class:`Distance` does, and no more than
    ``BLOCK`` distances are held at a time.
    """
    if len(b) == 0:
        raise InputError("distances need the features of at least one training structure, got none")
    centre = b.mean(0)
    points = b - centre
    squares = points.square().sum(1)
    parts = [
        _nearest(rows - centre, points, squares)
        for rows in a.split(max(BLOCK // max(len(b), (_CANDIDATES + 1) * b.shape[1]), 1))
    ]
    if not parts:
        return a.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=a.device)
    return torch.cat([distance for distance, _ in parts]), torch.cat([index for _, index in parts])


def _nearest(rows: Tensor, points: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows [n, d] and points [m, d] about the middle of these, with squared norms [m], see :func:`nearest`."""
    ranks, found = _ranked(rows, points, squares)
    # more points than candidates may be copies of one another: the first of all that are as near, rounding aside
    rounding = 8 * torch.finfo(rows.dtype).eps * (rows.square().sum(1, keepdim=True) + squares.max())
    first = (ranks <= ranks.amin(1, keepdim=True) + rounding).int().argmax(1, keepdim=True)
    found = torch.cat([found, first], dim=1).sort(dim=1).values
    distances = (rows[:, None] - points[found]).square().sum(2)
    best = distances.argmin(1, keepdim=True)
    return distances.gather(1, best).squeeze(1), found.gather(1, best).squeeze(1)


def _ranked(rows: Tensor, points: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """|p|² - 2 x.p [n, m], which orders points as their distances do, and the first few points [n, c] in that order."""
    ranks = torch.addmm(squares, rows, points.T, alpha=-2)
    return ranks, ranks.topk(min(_CANDIDATES, len(points)), largest=False, sorted=False).indices


def first_largest(values: Tensor) -> Tensor:
    """Index [] of the largest value [n], which must not be negative; of equal ones the first, rounding aside."""
    return (values >= values.max() * (1 - _TIE)).int().argmax()


@torch.no_grad()
def farthest_points(points: Tensor, n_select: int, distance: Tensor) -> Tensor:
    """Greedily chooses the point farthest from all that are known or chosen before it (Eq. 27).

    Copies of known or chosen points come last, ties go to the lower index, and no point comes twice.

    Args:
        points: [n, d].
        n_select: how many to choose, at most n.
        distance: [n] squared distance of each point to the nearest known one.

    Returns:
        indices [n_select] int64, in the order of choice.
    """
    distance = distance.clone()
    order = []
    for _ in range(n_select):
        pick = first_largest(distance)
        order.append(pick)
        distance = torch.minimum(distance, squared_distances(points, points[pick][None]).squeeze(1))
        # below every point that is left, copies of chosen ones included
        distance[pick] = -1.0
    return torch.stack(order) if order else torch.zeros(0, dtype=torch.int64, device=points.device)


class Distance(nn.Module):
    """Distance u = min_j |phi - phi_j| to the features of the training set (Eq. 3).

    If there are more than ``max_points`` of them, a representative subset stands for all: the longest one,
    then always the one farthest from those chosen before (Eq. 27).

    The nearest points are looked up by a matrix product, |phi|^2 - 2 phi.phi_j + |phi_j|^2, whose rounding
    only blurs which of nearly equal distances is the smallest; the distance itself is then summed from the
    differences to the few nearest. So it is accurate, zero at a training point, and its derivative costs no
    pass over all points. There, at a training point, the derivative is zero too.

    Args:
        n_features: d, width of the features.
        max_points: largest number of points kept; None for no limit.

    Raises:
        InputError: if ``max_points`` is not positive.
    """

    points: Tensor
    centre: Tensor
    squares: Tensor

    def __init__(self, n_features: int, max_points: int | None = None):
        super().__init__()
        if max_points is not None and max_points < 1:
            raise InputError(f"uncertainty.max_points={max_points} must be at least 1, or null for no limit")
        self.max_points = max_points
        # none is saved as a buffer: their number depends on the training set
        self.register_buffer("points", torch.zeros(0, n_features), persistent=False)
        self.register_buffer("centre", torch.zeros(n_features), persistent=False)
        self.register_buffer("squares", torch.zeros(0), persistent=False)

    def fit(self, features: Tensor) -> None:
        """Conditions on training features [n, d]; forgets what it was fitted to before."""
        self.fit_chunks([features])

    @torch.no_grad()
    def fit_chunks(self, chunks: Iterable[Tensor]) -> None:
        """As :meth:`fit`, for features in parts [n, d].

        Raises:
            InputError: if there are none, or they are not finite.
        """
        features = torch.cat([self.points[:0], *(chunk.to(self.points) for chunk in chunks)])
        if len(features) == 0:
            raise InputError("distances need the features of at least one training structure, got none")
        if not torch.isfinite(features).all():
            raise InputError("training features are not finite; check the training")
        if self.max_points is not None and len(features) > self.max_points:
            # the farthest from nothing is the longest
            longest = first_largest(features.double().square().sum(1))
            distance = squared_distances(features, features[longest][None]).squeeze(1)
            distance[longest] = math.inf
            features = features[farthest_points(features, self.max_points, distance)]
        self._keep(features)

    def _keep(self, points: Tensor) -> None:
        # distances do not depend on the origin, and rounding is least about the middle
        self.centre = points.mean(0) if len(points) else torch.zeros_like(self.centre)
        self.points = points - self.centre
        self.squares = self.points.square().sum(1)

    def forward(self, features: Tensor) -> Tensor:
        """Uncertainties u [n] of features [n, d], in the unit of the features.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        if len(self.points) == 0:
            raise RuntimeError("the distance has not been fitted: call fit() or load a fitted state first")
        size = max(BLOCK // len(self.points), 1)
        return torch.cat([self._distance(rows) for rows in features.split(size)])

    def _distance(self, features: Tensor) -> Tensor:
        features = features - self.centre
        with torch.no_grad():
            _, found = _ranked(features, self.points, self.squares)
            best = (features[:, None] - self.points[found]).square().sum(2).argmin(1)
            index = found.gather(1, best[:, None]).squeeze(1)
        return torch.linalg.vector_norm(features - self.points[index], dim=-1)

    def get_extra_state(self) -> Tensor:
        """The points [k, d], as part of ``state_dict``; none before :meth:`fit`."""
        return torch.cat([self.centre[None], self.points])

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` gave."""
        state = state.to(self.points)
        self.centre, self.points = state[0], state[1:]
        self.squares = self.points.square().sum(1)
