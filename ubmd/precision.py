"""The precision that new tensors have for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["precision"]


@contextmanager
def precision(dtype: Any) -> Iterator[None]:
    """New tensors of PyTorch have a type while the block runs; None leaves them alone."""
    if dtype is None:
        yield
        return
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
