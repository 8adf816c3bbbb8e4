"""MACE (Batatia et al., NeurIPS 2022; arXiv:2206.07697) as a model, with weights of its makers or of one's own.

The network is that of the package ``mace-torch``, which is imported when one is made. It is given ubmd's edges, so that
all walkers of a batch are one graph, and leaves derivatives to :mod:`ubmd.models.potential`.

MACE's own files are pickled modules, which run whatever is in them when they are read. ubmd does not read them:
:func:`write_checkpoint` writes weights and sizes of a MACE that its user has loaded, and these are read.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.files import save_tensors
from ubmd.imports import extra_with, first_line
from ubmd.models.base import AtomicOutput
from ubmd.models.foundation import edges, element_places
from ubmd.models.head import LinearHead
from ubmd.precision import precision
from ubmd.torch_files import DamagedFileError, read_torch_file

__all__ = ["MACE", "write_checkpoint"]

FORMAT = "MACE for ubmd, 1"
NUMBERS = ("r_max", "num_bessel", "num_polynomial_cutoff", "max_ell", "num_interactions", "avg_num_neighbors")
IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
CLASSES = {
    "interaction_cls": "interaction_classes",
    "interaction_cls_first": "interaction_classes",
    "readout_cls": "readout_classes",
    "gate": "gate_dict",
}
"""Options that are classes and functions, and MACE's table of their names."""
PLAIN = (
    *("correlation", "radial_type", "radial_MLP", "apply_cutoff", "pair_repulsion", "distance_transform"),
    *("use_reduced_cg", "use_so3", "use_agnostic_product", "use_last_readout_only", "use_edge_irreps_first"),
)
MOST = {"r_max": 100, "max_ell": 8, "num_interactions": 16, "correlation": 8}
"""Of a file from elsewhere: sizes that no network has; all others are below ``WIDEST``."""
WIDEST = 4096
HEADS = "heads"
ENERGIES, SCALE, SHIFT = "atomic_energies_fn.atomic_energies", "scale_shift.scale", "scale_shift.shift"
READOUTS = ("LinearReadoutBlock", "NonLinearReadoutBlock", "NonLinearBiasReadoutBlock")


class MACE(nn.Module):
    """Atomic energies of MACE.

    Features of an atom are the inputs of the last layers of all its readouts, of which the energy is a linear function.

    Args:
        species: chemical symbols of the run, all of which it has to know.
        checkpoint: a file that :func:`write_checkpoint` wrote.
        head: level of theory, of a network that was trained on several.
        trained: what a fit changes, the whole network or its readouts alone.
        architecture: sizes of a network without weights, as a potential's file has them, in place of ``checkpoint``.

    Raises:
        InputError: without ``mace-torch``, for a file that is none of these, for species that the network does not
            know, or a level of theory that it does not have.
    """

    by_pair_vectors = True
    pretrained = True
    sizeless = False
    index: Tensor
    """[120] place of an atomic number among the elements of the network; -1 for one that it does not know."""
    element_shift: Tensor
    """[n_elements] eV."""

    def __init__(
        self,
        species: Sequence[str],
        checkpoint: str | None = None,
        head: str | None = None,
        trained: Literal["all", "readout"] = "all",
        architecture: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if trained not in ("all", "readout"):
            raise InputError(f"model.trained={trained} must be all or readout")
        sizes, state = _read(checkpoint) if architecture is None else (dict(architecture), None)
        name = checkpoint if architecture is None else "model.architecture"
        network = _built(sizes, state)
        self.head = _head(sizes[HEADS], head, name)
        energies: Tensor = network.atomic_energies_fn.atomic_energies  # [n_heads, n_elements]
        self.register_buffer("element_shift", energies[self.head].clone())
        energies.zero_()  # they would round what depends on positions
        places = {z: place for place, z in enumerate(sizes["atomic_numbers"])}
        self.register_buffer("index", element_places(places, species, name), persistent=False)
        if trained == "readout":
            network.requires_grad_(False)
            network.readouts.requires_grad_(True)
        self.network = network
        self.cutoff = float(sizes["r_max"])
        lasts = [_last_layer(readout, name) for readout in network.readouts]
        self.n_features = sum(map(_width, lasts))
        self.layer_sizes = [(self.n_features, 1)]
        self.portable = {"checkpoint": None, "architecture": sizes}

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Atomic energies from pair vectors r_i - r_j [n_atoms, k, 3] Å."""
        i, k = edges(vectors, batch, self.cutoff)
        elements = self.index[batch.numbers]
        data = {
            # an edge is r_i - r_j + shift there: all that is geometric comes as shifts
            "positions": vectors.new_zeros(len(elements), 3),
            "shifts": vectors[i, k],
            "edge_index": torch.stack([batch.neighbours[i, k], i]),  # a message comes from the first
            "node_attrs": one_hot(elements, len(self.element_shift)).to(vectors.dtype),
            "batch": batch.system_idx,
            "ptr": torch.cat([batch.n_atoms.new_zeros(1), batch.n_atoms.cumsum(0)]),
            "cell": batch.cell,
            "head": torch.full_like(batch.n_atoms, self.head),
        }
        given: dict[nn.Module, Tensor] = {}
        lasts = [_last_layer(readout, None) for readout in self.network.readouts]
        hooks = [last.register_forward_pre_hook(lambda m, x: given.__setitem__(m, x[0])) for last in lasts]
        try:
            energies = self.network(data, compute_force=False)["node_energy"]
        finally:
            for hook in hooks:
                hook.remove()
        features = torch.cat([_features(last, given[last]) for last in lasts], 1)
        energies = energies.double() + self.element_shift[elements].double()
        return AtomicOutput(energies, features, LinearHead(features, (_bias(lasts[-1]),)))


def write_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Writes weights and sizes of a MACE in a form that is read without running code.

    Args:
        model: of the package ``mace``, with energies (``ScaleShiftMACE``, as ``mace_run_train`` makes it and as its
            makers' potentials are).
        path: the file.

    Raises:
        InputError: without ``mace-torch``, and for a model of another kind.
    """
    config = _mace("tools.scripts_utils").extract_config_mace_model(model)
    if type(model).__name__ != "ScaleShiftMACE" or config.get("embedding_specs") or config.get("cueq_config"):
        raise InputError(
            f"a {type(model).__name__} with such options is no ScaleShiftMACE of e3nn, the only kind of MACE that ubmd "
            "knows; convert it with mace_cueq_to_e3nn, or choose another model"
        )
    sizes = {key: _plain_value(config[key]) for key in (*NUMBERS, *IRREPS, *PLAIN, "atomic_numbers", HEADS)}
    tables = {key: getattr(_mace("modules"), table) for key, table in CLASSES.items()}
    sizes |= {key: _name_of(config[key], table, key) for key, table in tables.items()}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _built(sizes, state)  # what could not be read is not written
    save_tensors(Path(path), {"format": FORMAT, "sizes": sizes, "state": state})


def _plain_value(value: Any) -> Any:
    """Numbers, texts and lists of what MACE has as arrays and representations."""
    if isinstance(value, np.ndarray | Tensor | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple) and all(isinstance(item, int | str) for item in value):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _name_of(part: Any, table: Mapping[str, Any], key: str) -> str:
    for name, known in table.items():
        if known is part:
            return name
    raise InputError(f"this MACE has {key}={part}, which is not of mace-torch; choose another model")


def _read(checkpoint: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and weights of a file."""
    how = "write one of a MACE with ubmd.models.mace.write_checkpoint (see the page on foundation potentials)"
    if checkpoint is None:
        raise InputError(f"model.checkpoint is null; {how}")
    try:
        content = read_torch_file(Path(checkpoint))
    except FileNotFoundError as error:
        raise InputError(f"model.checkpoint={checkpoint} does not exist; {how}") from error
    except (DamagedFileError, OSError) as error:
        raise InputError(
            f"model.checkpoint={checkpoint} holds more than weights and sizes, or is damaged ({error}); MACE's own "
            f"files run code when they are read, which ubmd does not: {how}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"model.checkpoint={checkpoint} is no checkpoint of MACE for ubmd; {how}")
    return content["sizes"], content["state"]


def _built(sizes: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> Any:
    """The network with its weights and their precision, or with any; atomic energies are [n_heads, n_elements]."""
    _check(sizes)
    modules, irreps = _mace("modules"), _mace("modules.models").o3.Irreps
    options = {key: sizes[key] for key in (*NUMBERS, *PLAIN, *CLASSES, "atomic_numbers", HEADS)}
    for key, table in CLASSES.items():
        if sizes[key] not in getattr(modules, table):
            raise InputError(f"model.architecture.{key}={sizes[key]} is none of {', '.join(getattr(modules, table))}")
        options[key] = getattr(modules, table)[sizes[key]]
    options |= {key: None if sizes[key] is None else irreps(sizes[key]) for key in IRREPS}
    heads, elements = len(sizes[HEADS]), len(sizes["atomic_numbers"])
    options |= {"atomic_inter_scale": [1.0] * heads, "atomic_inter_shift": [0.0] * heads}
    dtype = torch.get_default_dtype() if state is None else state[SCALE].dtype
    with precision(dtype):  # MACE makes its constants in the default one
        network = modules.ScaleShiftMACE(
            **options, num_elements=elements, atomic_energies=np.zeros((heads, elements)), cueq_config=None
        )
    if state is not None:
        own = {ENERGIES: state[ENERGIES].reshape(heads, elements)}
        own |= {key: state[key].reshape(-1).expand(heads) for key in (SCALE, SHIFT)}
        try:
            network.load_state_dict({**state, **own})
        except RuntimeError as error:
            raise InputError(
                f"model.checkpoint has weights of another network than this version of mace-torch builds "
                f"({first_line(error)}); write it anew with the version that is installed"
            ) from error
    return network


def _check(sizes: Mapping[str, Any]) -> None:
    """Refuses sizes that no network has: a file from elsewhere must not take all memory."""
    needed = {*NUMBERS, *IRREPS, *PLAIN, *CLASSES, "atomic_numbers", HEADS}
    if missing := needed - sizes.keys():
        raise InputError(f"model.architecture has no {sorted(missing)[0]}; write the checkpoint anew")
    for key in needed:
        value = sizes[key]
        numbers = value if isinstance(value, list) else [value]
        if key in IRREPS and value is not None:
            if not isinstance(value, str) or not re.fullmatch(r"\d{1,4}x\d[eo](\+\d{1,4}x\d[eo]){0,15}", value):
                raise InputError(f"model.architecture.{key}={value} is no list of representations")
        elif len(numbers) > WIDEST or not all(_is_size(number, MOST.get(key, WIDEST)) for number in numbers):
            raise InputError(f"model.architecture.{key}={value} is no size of a network")


def _is_size(value: Any, most: float) -> bool:
    return isinstance(value, str | bool | None) or (isinstance(value, int | float) and 0 <= value <= most)


def _last_layer(readout: Any, name: str | None) -> Any:
    """The linear layer that a readout ends with."""
    if type(readout).__name__ not in READOUTS:
        raise InputError(f"model.checkpoint={name} has a {type(readout).__name__}, a readout that ubmd does not know")
    return readout.linear if type(readout).__name__ == READOUTS[0] else readout.linear_2


def _width(layer: Any) -> int:
    """Number of scalars among the inputs of a linear layer, the only ones that an energy is made of."""
    return layer.irreps_in.count("0e")


def _features(layer: Any, x: Tensor) -> Tensor:
    """[n_atoms, width] the scalars of its inputs, divided as it does: the energy is its weights times these."""
    parts = [
        x[:, part]
        for part, (_, irrep) in zip(layer.irreps_in.slices(), layer.irreps_in, strict=True)
        if irrep.is_scalar()
    ]
    return torch.cat(parts, 1) * _width(layer) ** -0.5


def _bias(layer: Any) -> float:
    return 1.0 if layer.bias is not None and layer.bias.numel() else 0.0


def _head(heads: Sequence[str], head: str | None, name: str | None) -> int:
    """The place of a level of theory among those of a network."""
    if head is None and len(heads) == 1:
        return 0
    if head not in heads:
        raise InputError(f"model.head={head} must be one of {', '.join(heads)}, which model.checkpoint={name} knows")
    return heads.index(head)


def _mace(module: str) -> Any:
    """A module of the package ``mace``, whose import leaves torch as careful with files as it was."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # it sets this, for its own files
    before = os.environ.get(name)
    try:
        return importlib.import_module(f"mace.{module}")
    except ModuleNotFoundError as error:
        raise InputError(f"model=mace needs the package {error.name}, which is missing{extra_with(error)}") from error
    finally:
        if before is None:
            os.environ.pop(name, None)
