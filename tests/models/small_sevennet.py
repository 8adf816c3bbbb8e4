"""A small SevenNet with weights of its own, built and saved as its package does."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch

ELEMENTS = ["Na", "C", "H", "Cl", "O", "Si", "Cu"]


def write_checkpoint(path: Path, **options: Any) -> Path:
    from ase.data import atomic_numbers
    from sevenn import __version__
    from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG as DEFAULT
    from sevenn.model_build import build_E3_equivariant_model

    config = copy.deepcopy(DEFAULT) | {
        "version": __version__,
        "cutoff": 4.0,
        "channel": 4,
        "lmax": 2,
        "num_convolution_layer": 2,
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.5},
        "conv_denominator": [8.0, 8.0],
        "_number_of_species": len(ELEMENTS),
        "_type_map": {atomic_numbers[e]: place for place, e in enumerate(ELEMENTS)},
        "shift": [-1.0 - 0.3 * place for place in range(len(ELEMENTS))],
        "scale": [1.0 + 0.1 * place for place in range(len(ELEMENTS))],
        **options,
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        model = build_E3_equivariant_model(config)
    assert isinstance(model, torch.nn.Module)
    torch.save({"config": config, "model_state_dict": model.state_dict(), "epoch": 1}, path)
    return path


def of_two_levels(path: Path) -> Path:
    options = {
        "use_modality": True,
        "_number_of_modalities": 2,
        "_modal_map": {"PBE": 1, "R2SCAN": 0},
        "use_modal_self_inter_intro": True,
        "use_modal_output_block": True,
        "use_modal_wise_shift": True,
        "use_modal_wise_scale": False,
        "shift": [[-1.0] * len(ELEMENTS), [-2.0] * len(ELEMENTS)],
        "scale": [1.5] * len(ELEMENTS),
    }
    return write_checkpoint(path, **options)
