"""SevenNet (Park et al., J. Chem. Theory Comput. 2024, 20, 4857) as a model, with weights of its makers.

The network is that of the package ``sevenn``, which is imported when one is made. It is given ubmd's edges, so that all
walkers of a batch are one graph, and leaves derivatives to :mod:`ubmd.models.potential`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.imports import extra_with
from ubmd.models.base import AtomicOutput
from ubmd.models.foundation import edges, element_places
from ubmd.models.head import LinearHead
from ubmd.torch_files import DamagedFileError, read_torch_file

__all__ = ["SevenNet"]

IN_THE_WHEEL = {
    "7net-0": "SEVENNET_0_11Jul2024",
    "7net-0_22may2024": "SEVENNET_0_22May2024",
    "7net-l3i5": "SEVENNET_l3i5",
    "7net-mf-0": "SEVENNET_MF_0",
}
"""Potentials that come with the package, and what it calls their files."""

SIZES = (
    *("cutoff", "channel", "irreps_manual", "lmax", "lmax_edge", "lmax_node", "is_parity", "num_convolution_layer"),
    *("radial_basis", "cutoff_function", "act_radial", "act_scalar", "act_gate", "weight_nn_hidden_neurons"),
    *("conv_denominator", "self_connection_type", "_normalize_sph", "use_bias_in_linear", "interaction_type"),
    *("use_modal_node_embedding", "use_modal_self_inter_intro", "use_modal_self_inter_outro", "use_modal_output_block"),
)
"""What ``sevenn`` builds a network from, besides the elements and the levels of theory."""
MOST = {"channel": 1024, "lmax": 8, "lmax_edge": 8, "lmax_node": 8, "num_convolution_layer": 16}
"""Of a file from elsewhere: sizes that no network has."""

READOUT = ("reduce_input_to_hidden", "reduce_hidden_to_energy")


class SevenNet(nn.Module):
    """Atomic energies of SevenNet.

    Its readout is linear, so that sketched gradients of it are its last layer's features, projected.

    Args:
        species: chemical symbols of the run, all of which it has to know.
        checkpoint: name of a potential that comes with ``sevenn`` (7net-0, 7net-l3i5, 7net-mf-0), or a checkpoint's
            file. Of a file, only tensors and plain values are read; no code in it is run.
        modal: level of theory, of a network that was trained on several (7net-mf-0: PBE or R2SCAN).
        trained: what a fit changes, the whole network or its readout alone.
        architecture: sizes of a network without weights, as a potential's file has them, in place of ``checkpoint``.

    Raises:
        InputError: without ``sevenn``, for a file that is none of its checkpoints, for species that the network does
            not know, or a level of theory that it does not have.
    """

    by_pair_vectors = True
    pretrained = True
    sizeless = False
    index: Tensor
    """[120] place of an atomic number among the elements of the network; -1 for one that it does not know."""
    element_shift: Tensor
    element_scale: Tensor

    def __init__(
        self,
        species: Sequence[str],
        checkpoint: str | None = "7net-0",
        modal: str | None = None,
        trained: Literal["all", "readout"] = "all",
        architecture: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        config, state = _read(checkpoint) if architecture is None else (_config(architecture), None)
        name = checkpoint if architecture is None else "model.architecture"
        if trained not in ("all", "readout"):
            raise InputError(f"model.trained={trained} must be all or readout")
        self.modal = _modal(config, modal, name)
        full = _built(config, state)
        self.register_buffer("index", element_places(config["_type_map"], species, name), persistent=False)
        shift, scale = _of_elements(full, self.modal)
        self.register_buffer("element_shift", shift)
        self.register_buffer("element_scale", scale)
        self.modalities = len(config.get("_modal_map") or ())
        # the embedding of elements makes float32 of everything, and what follows the readout is done here
        apart = ("onehot_idx", "one_hot", "rescale", "reduce_total", "force_output")
        self.network = nn.ModuleDict({k: part for k, part in full.named_children() if not k.startswith(apart)})
        if not all(key in self.network for key in READOUT):
            raise InputError(f"model.checkpoint={name} has a readout that is not linear, which ubmd does not know")
        if trained == "readout":
            for key, module in self.network.items():
                module.requires_grad_(key in READOUT)
        self.cutoff = float(config["cutoff"])
        self.n_features = int(self.network[READOUT[0]]._irreps_in_wo_modal.dim)  # pyright: ignore
        self.layer_sizes = [(self.n_features, 1)]
        self.portable = {"checkpoint": None, "architecture": _architecture(config)}

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Atomic energies from pair vectors r_i - r_j [n_atoms, k, 3] Å."""
        i, k = edges(vectors, batch, self.cutoff)
        elements = self.index[batch.numbers]
        x = one_hot(elements, len(self.element_shift)).to(vectors.dtype)
        data = {
            "edge_vec": -vectors[i, k],
            "edge_index": torch.stack([i, batch.neighbours[i, k]]),  # a message comes from the second
            "x": x,
            "node_attr": x,
            "batch": batch.system_idx,
        }
        if self.modal is not None:
            level = x.new_zeros(batch.n_systems, self.modalities)
            level[:, self.modal] = 1.0
            data["modal_attr"] = level
        for key, module in self.network.items():
            if key == READOUT[0]:
                features = data["x"]
            data = module(data)
        y = data["scaled_atomic_energy"].squeeze(1).double()
        energies = y * self.element_scale[elements] + self.element_shift[elements]
        return AtomicOutput(energies, features, LinearHead(features))  # pyright: ignore[reportPossiblyUnboundVariable]


def _read(checkpoint: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a checkpoint."""
    if checkpoint is None:
        raise InputError("model.checkpoint is null; name a potential of SevenNet, e.g. 7net-0, or its file")
    path = Path(checkpoint)
    if not path.is_file():
        if checkpoint.lower() not in IN_THE_WHEEL:
            raise InputError(
                f"model.checkpoint={checkpoint} is no file, and none of {', '.join(IN_THE_WHEEL)}, which come with "
                "sevenn; download it first and give its path"
            )
        path = Path(getattr(_sevenn("_const"), IN_THE_WHEEL[checkpoint.lower()]))
    try:
        content = read_torch_file(path, also=_numpy_arrays())
        config = _sevenn("checkpoint")._config_cp_routine(content["config"])
        return config, content["model_state_dict"]
    except (DamagedFileError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"model.checkpoint={checkpoint} is no checkpoint of SevenNet ({error!r})") from error


def _numpy_arrays() -> list[Any]:
    """What a file with NumPy's arrays names besides tensors and plain values: how NumPy makes arrays of numbers."""
    from numpy._core.multiarray import _reconstruct  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]

    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    return [
        np.ndarray,
        np.dtype,
        *kinds,
        *((_reconstruct, f"numpy.{name}.multiarray._reconstruct") for name in ("core", "_core")),
    ]


def _config(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What ``sevenn`` builds a network from, of what :func:`_architecture` gave."""
    elements, modalities = architecture.get("elements"), architecture.get("modalities")
    if not isinstance(elements, list) or not all(isinstance(e, str) and e in atomic_numbers for e in elements):
        raise InputError("model.architecture has no list of elements; write the potential anew")
    for key, most in MOST.items():
        value = architecture.get(key, 0)
        if not isinstance(value, int) or value > most:
            raise InputError(f"model.architecture.{key}={value} must be a whole number up to {most}")
    config = {key: architecture[key] for key in SIZES if key in architecture}
    config |= dict.fromkeys(("train_shift_scale", "train_denominator"), False)
    config |= {
        "_number_of_species": len(elements),
        "_type_map": {atomic_numbers[element]: place for place, element in enumerate(elements)},
        "shift": [0.0] * len(elements),
        "scale": [1.0] * len(elements),
        "readout_as_fcn": False,
        "use_modality": bool(modalities),
    }
    if modalities:
        config |= {
            "_modal_map": {name: place for place, name in enumerate(modalities)},
            "_number_of_modalities": len(modalities),
            "use_modal_wise_shift": False,
            "use_modal_wise_scale": False,
        }
    return config


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a checkpoint's configuration, as plain values that JSON holds too."""
    found = {key: config[key] for key in SIZES if key in config}
    found["elements"] = [chemical_symbols[z] for z in _in_order(config["_type_map"])]
    if config.get("_modal_map"):
        found["modalities"] = _in_order(config["_modal_map"])
    return found


def _in_order(places: Mapping[Any, int]) -> list[Any]:
    return [name for name, _ in sorted(places.items(), key=lambda item: item[1])]


def _built(config: dict[str, Any], state: Mapping[str, Tensor] | None) -> nn.Module:
    """The network with its weights, or with any."""
    model = _sevenn("model_build").build_E3_equivariant_model(config)
    if state is not None:
        changed = _sevenn("scripts.backward_compatibility").patch_state_dict_if_old(dict(state), config, model)
        model.load_state_dict(changed)
    return model


def _of_elements(model: nn.Module, modal: int | None) -> tuple[Tensor, Tensor]:
    """Shifts and scales of the energies of all elements, eV."""
    rescale = model.get_submodule("rescale_atomic_energy")
    n = len(model.type_map)  # pyright: ignore[reportArgumentType]
    found = []
    for value in (rescale.shift, rescale.scale):
        assert isinstance(value, Tensor)
        own = value.detach()
        if own.ndim == 2:  # one row a level of theory
            assert modal is not None
            own = own[modal]
        found.append(own.expand(n).clone())
    return found[0], found[1]


def _modal(config: Mapping[str, Any], modal: str | None, name: str | None) -> int | None:
    """The place of a level of theory among those of a network."""
    known = config.get("_modal_map") if config.get("use_modality") else None
    if not known:
        if modal is not None:
            raise InputError(f"model.modal={modal}: model.checkpoint={name} has a single level of theory; leave it out")
        return None
    if modal not in known:
        raise InputError(f"model.modal={modal} must be one of {', '.join(known)}, which model.checkpoint={name} knows")
    return known[modal]


def _sevenn(module: str) -> Any:
    """A module of the package ``sevenn``."""
    import importlib

    try:
        return importlib.import_module(f"sevenn.{module}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"model=sevennet needs the package {error.name}, which is missing{extra_with(error)}"
        ) from error
