"""The precision of new tensors: as asked for in the block, and as before behind it, also after an error."""

from __future__ import annotations

import pytest
import torch

from ubmd.precision import precision


def test_is_put_back() -> None:
    before = torch.get_default_dtype()
    other = torch.float64 if before == torch.float32 else torch.float32
    try:
        with pytest.raises(RuntimeError, match=str(other)), precision(other):
            raise RuntimeError(str(torch.zeros(()).dtype))
        assert torch.get_default_dtype() == before
        with precision(None):
            assert torch.zeros(()).dtype == before
    finally:
        torch.set_default_dtype(before)
