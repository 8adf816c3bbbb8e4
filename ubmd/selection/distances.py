"""Batch selection by distances between features: farthest points (Eq. 27) and largest clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ubmd.selection.base import Pool, check_features
from ubmd.uncertainty.distance import farthest_points, first_largest, nearest, squared_distances

__all__ = ["LCMD", "MaxDist", "lcmd"]


@dataclass(frozen=True)
class MaxDist:
    """Always the candidate farthest from all that are labelled or chosen before it (Eq. 27).

    Copies come last, ties go to the lower index.
    """

    needs_features: ClassVar[bool] = True

    def __call__(self, pool: Pool, n_select: int, *, seed: int = 0) -> Tensor:
        """Indices [n_select] of the chosen candidates, farthest first; nothing here is random."""
        features, labelled = check_features(pool, n_select)
        return farthest_points(features, n_select, nearest(features, labelled)[0])


@dataclass(frozen=True)
class LCMD:
    """Largest cluster, maximum distance (Holzmüller et al. 2023), see :func:`lcmd`."""

    needs_features: ClassVar[bool] = True

    def __call__(self, pool: Pool, n_select: int, *, seed: int = 0) -> Tensor:
        """Indices [n_select] of the chosen candidates in the order of choice; nothing here is random."""
        features, labelled = check_features(pool, n_select)
        return lcmd(features, labelled, n_select)


@torch.no_grad()
def lcmd(features: Tensor, labelled: Tensor, n_select: int) -> Tensor:
    """Greedily chooses the point farthest from its centre in the largest cluster.

    Labelled and chosen points are the centres, and each candidate belongs to the nearest one. The size of a
    cluster is the sum of squared distances of its candidates to the centre: many that are somewhat far
    count as much as one that is very far, which keeps the batch representative of the pool. A chosen point
    becomes a centre and takes over what is nearer to it.

    Of equal clusters the one with the earlier centre is taken (labelled ones first), of points equally far
    the lower index; copies of centres come last.

    Args:
        features: [n, d] of the candidates.
        labelled: [m, d], the first centres.
        n_select: how many to choose, at most n.

    Returns:
        indices [n_select] int64, in the order of choice.
    """
    distance, cluster = nearest(features, labelled)
    chosen = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    order = []
    for step in range(n_select):
        sizes = distance.new_zeros(len(labelled) + step).index_add(0, cluster, distance)
        # if all clusters are empty or made of copies, whatever is left is as good
        members = (cluster == first_largest(sizes)) | (sizes == 0).all()
        pick = first_largest(torch.where(members & ~chosen, distance, -1.0))
        order.append(pick)
        chosen[pick] = True
        new = squared_distances(features, features[pick][None]).squeeze(1)
        closer = new < distance
        distance = torch.where(closer, new, distance)
        cluster = torch.where(closer, len(labelled) + step, cluster)
    return torch.stack(order) if order else torch.zeros(0, dtype=torch.int64, device=features.device)
