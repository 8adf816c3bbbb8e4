"""Averaged weights."""

from __future__ import annotations

from lightning.pytorch.callbacks import EMAWeightAveraging

from ubmd.errors import InputError

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage(EMAWeightAveraging):
    """Validates and saves an exponential moving average of the weights, updated after every step.

    The first step's weights are taken as they are, then a <- decay a + (1 - decay) w. Buffers are copied
    rather than averaged: an averaged table of species would be none. In a configuration, ``callbacks=ema``::

        callbacks:
          ema:
            _target_: ubmd.callbacks.ema.ExponentialMovingAverage
            decay: 0.99

    Args:
        decay: weight of the past in each update; the average reaches about 1 / (1 - decay) steps back.

    Raises:
        InputError: if ``decay`` is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.99):
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay} of the moving average must be at least 0 and below 1")
        super().__init__(use_buffers=False, decay=decay)
