"""A model that ubmd knows nothing about: messages pass between neighbours, along edge vectors of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.models.base import AtomicOutput
from ubmd.models.head import linear_sizes, trace_head


class MessagePassing(nn.Module):
    def __init__(self, species: Sequence[str], cutoff: float = 4.0, width: int = 8, rounds: int = 2):
        super().__init__()
        self.cutoff, self.n_features = cutoff, width
        self.elements = nn.Embedding(100, width)
        self.filters = nn.ModuleList(nn.Linear(6, width) for _ in range(rounds))
        self.updates = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(inplace=True), nn.Linear(width, 1))
        self.layer_sizes = linear_sizes(self.head)

    def forward(self, batch: AtomicBatch) -> AtomicOutput:
        i, k = batch.mask.nonzero(as_tuple=True)
        j = batch.neighbours[i, k]
        edges = batch.positions[j] - batch.positions[i]
        if batch.shifts is not None:
            edges = edges + torch.einsum("es,esx->ex", batch.shifts[i, k], batch.cell[batch.system_idx[i]])
        distance = torch.linalg.vector_norm(edges, dim=1)[:, None]
        frequencies = torch.arange(1, 7, device=edges.device)
        inside = (1 - (distance / self.cutoff).clamp(max=1.0).square()).square()
        radial = torch.cos(frequencies * distance / self.cutoff) * inside
        x = self.elements(batch.numbers)
        for filters, update in zip(self.filters, self.updates, strict=True):
            messages: Tensor = (radial @ filters.weight.T) * x[j]
            x = x + torch.tanh(update(torch.zeros_like(x).index_add(0, i, messages)))
        trace = trace_head(self.head, x)
        return AtomicOutput(trace.output, x, trace)
