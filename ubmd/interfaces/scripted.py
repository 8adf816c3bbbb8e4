"""GM-NN with its uncertainties as TorchScript, for programs without ubmd: pure PyTorch, one list of pairs.

The same equations as :mod:`ubmd.models.gmnn` and :mod:`ubmd.uncertainty`, in the plain operations that TorchScript
understands; energies are differentiable by the pair vectors. Nothing here is fitted: numbers are copies. TorchScript
reads the annotations and wants them as they are (no ``from __future__ import annotations``).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.models.gmnn_stack import GMNNStack
from ubmd.models.readout import BIAS_FACTOR
from ubmd.models.scale_shift import worn
from ubmd.models.zbl import pair_energy
from ubmd.uncertainty.distance import Distance
from ubmd.uncertainty.ensemble import EnsembleUncertainty
from ubmd.uncertainty.feature_uncertainty import FromFeatures
from ubmd.uncertainty.features import LastLayer, SketchedGradients
from ubmd.uncertainty.posterior import Posterior
from ubmd.uncertainty.potential import UncertainPotential

__all__ = ["ScriptedPotential"]


class ScriptedPotential(nn.Module):
    """What a potential of GM-NN, or of an ensemble of them, says about atoms; ready for ``torch.jit.script``.

    Args:
        potential: with its uncertainty, in the precision to compute in; on the CPU.

    Raises:
        InputError: for a model or an uncertainty that has no TorchScript.
    """

    index: Tensor
    atomic_scale: Tensor
    total_scale: Tensor
    atomic: Tensor
    atomic_centre: Tensor
    total: Tensor
    total_centre: Tensor
    last_sketch: Tensor
    radii: Tensor

    def __init__(self, potential: UncertainPotential):
        super().__init__()
        model, uncertainty = worn(potential.model), potential.uncertainty
        networks = _networks(model)
        self.n_members = len(networks)
        self.networks = nn.ModuleList(networks)
        shifted: Any = model if isinstance(model, GMNN) else model.stack
        self.register_buffer("index", shifted.index.clone())
        repulsion = shifted.repulsion
        self.register_buffer("radii", shifted.shift.new_zeros(0) if repulsion is None else repulsion.radii.clone())
        self.register_buffer("atomic_scale", uncertainty.atomic_scale.clone())
        self.register_buffer("total_scale", uncertainty.total_scale.clone())
        self.factor = BIAS_FACTOR
        self.from_features = self.sketched = self.by_distance = False
        for name in ("atomic", "atomic_centre", "total", "total_centre", "last_sketch"):
            self.register_buffer(name, uncertainty.total_scale.new_zeros(0))
        if not isinstance(uncertainty, EnsembleUncertainty):
            self._take_features(uncertainty)

    def _take_features(self, uncertainty: Any) -> None:
        """Copies an uncertainty that is made of features."""
        features = uncertainty.features if isinstance(uncertainty, FromFeatures) else None
        if self.n_members > 1 or not isinstance(features, SketchedGradients | LastLayer):
            made = type(uncertainty if features is None else features).__name__
            raise InputError(f"uncertainties of {made} cannot be exported; use sketched gradients or the last layer")
        self.from_features = True
        self.sketched = isinstance(features, SketchedGradients)
        if isinstance(features, SketchedGradients):
            for layer, (inner, outer) in zip(self.networks[0].layers, features.projections, strict=True):  # pyright: ignore
                layer.inner, layer.outer = inner.clone(), outer.clone()
        elif features.sketch is not None:
            self.last_sketch = features.sketch.clone()
        for name in ("atomic", "total"):
            estimator = getattr(uncertainty, name)
            if isinstance(estimator, Distance):
                self.by_distance = True
                setattr(self, name, estimator.points.clone())
                setattr(self, f"{name}_centre", estimator.centre.clone())
            elif isinstance(estimator, Posterior):
                setattr(self, name, estimator.whitening.clone())

    def forward(self, vectors: Tensor, first: Tensor, second: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Atomic quantities.

        Args:
            vectors: [n_pairs, 3] Å, from atom ``second`` to atom ``first``; each pair in both directions.
            first: [n_pairs] int64, the atom whose neighbour it is.
            second: [n_pairs] int64.
            numbers: [n_atoms] atomic numbers, int64.

        Returns:
            ``energies`` [n_members, n_atoms] eV, float64; of a single network also ``last_layer`` [n_atoms, n], the
            input of its last layer, and with an uncertainty from features ``features`` [n_atoms, d] and
            ``uncertainty`` [n_atoms] of the forces, calibrated, eV/Å.
        """
        species = self.index[numbers]
        repulsion = self.repulsion(vectors, first, second, numbers)
        energies: list[Tensor] = []
        out: dict[str, Tensor] = {}
        for network in self.networks:
            found = network(vectors, first, second, species, self.sketched)
            energies.append(found["energies"] + repulsion)
            if self.n_members == 1:
                out["last_layer"] = found["last_layer"]
                if self.from_features:
                    features = found["sketch"] if self.sketched else self._last(found["last_layer"])
                    out["features"] = features
                    out["uncertainty"] = self.atomic_scale[numbers] * self._far(
                        features, self.atomic, self.atomic_centre
                    )
        out["energies"] = torch.stack(energies)
        return out

    def repulsion(self, vectors: Tensor, first: Tensor, second: Tensor, numbers: Tensor) -> Tensor:
        """Energies of atoms that come too close [n_atoms], float64; zero without such a repulsion."""
        energies = torch.zeros(numbers.shape[0], dtype=torch.float64, device=vectors.device)
        if self.radii.shape[0] == 0:
            return energies
        outer = (self.radii[numbers[first]] + self.radii[numbers[second]]).double()
        r = vectors.double().square().sum(1).sqrt()
        found, _ = pair_energy(r, numbers[first].double(), numbers[second].double(), outer)
        return energies.index_add(0, first, 0.5 * found)

    @torch.jit.export
    def total_uncertainty(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Calibrated uncertainty of the energy [n_systems] eV.

        Args:
            sums: [n_systems, n] sums of ``features`` over the atoms of each structure or, of an ensemble,
                [n_systems, n_members] of the energies, eV.
            counts: [n_systems] numbers of atoms.
        """
        if not self.from_features:
            apart = sums - sums.mean(1, keepdim=True)
            return self.total_scale * torch.linalg.vector_norm(apart, dim=1).to(counts.dtype) * self.n_members**-0.5
        return self.total_scale * self._far(sums / counts[:, None], self.total, self.total_centre) * counts

    def _last(self, x: Tensor) -> Tensor:
        """Inputs of the last layer with the factor of its bias, or a sketch of them."""
        with_bias = torch.cat([x, torch.full_like(x[:, :1], self.factor)], dim=1)
        return with_bias @ self.last_sketch.T if self.last_sketch.shape[0] > 0 else with_bias

    def _far(self, features: Tensor, known: Tensor, centre: Tensor) -> Tensor:
        """How far features [n, d] are from those of the training structures, not calibrated."""
        if self.by_distance:
            return torch.cdist(features - centre, known, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
        return torch.linalg.vector_norm(features @ known.T, dim=1)


class _Network(nn.Module):
    """One network of Gaussian moments (Eqs. 9-13) for atoms with a flat list of pairs."""

    beta: Tensor
    centres: Tensor
    columns: Tensor
    identity: Tensor
    scale: Tensor
    shifts: Tensor

    def __init__(self, model: Any, member: int | None):
        """Copies a :class:`~ubmd.models.gmnn.GMNN`, or a member of :class:`~ubmd.models.gmnn_stack.GMNNStack`."""
        super().__init__()

        def own(x: Tensor) -> Tensor:
            return (x if member is None else x[member]).detach().clone()

        gaussians, contractions = model.moments.gaussians, model.contractions
        self.cutoff, self.width, self.norm = float(gaussians.cutoff), float(gaussians.width), float(gaussians.norm)
        self.l_max = int(model.moments.l_max)
        self.silu_scale = float(model.readout.silu_scale)
        beta = own(model.beta)  # [n_species, n_species * n_gauss, n_basis]
        n_species, _, self.n_basis = beta.shape
        self.register_buffer("beta", beta.view(n_species, n_species, -1, self.n_basis))
        self.register_buffer("centres", gaussians.centres.detach().to(beta).clone())
        self.register_buffer("columns", contractions.columns.clone())
        self.register_buffer("identity", torch.eye(3, dtype=beta.dtype).view(9, 1))
        self.layers = nn.ModuleList(
            _Layer(own(weight), own(bias))
            for weight, bias in zip(model.readout.weights, model.readout.biases, strict=True)
        )
        self.register_buffer("scale", model.energy_unit.detach() * own(model.scale))
        self.register_buffer("shifts", own(model.shifts()))

    def forward(
        self, vectors: Tensor, first: Tensor, second: Tensor, species: Tensor, sketched: bool
    ) -> dict[str, Tensor]:
        x = self.invariants(vectors, first, second, species)
        inputs: list[Tensor] = []
        slopes: list[Tensor] = []
        z = x
        for number, layer in enumerate(self.layers):
            if number > 0:
                sigmoid = torch.sigmoid(z)
                slopes.append(self.silu_scale * z.shape[1] ** -0.5 * sigmoid * (1 + z * (1 - sigmoid)))
                x = self.silu_scale * z * sigmoid
            x = x * x.shape[1] ** -0.5
            inputs.append(x)
            z = layer(x)
        energies = (self.scale[species] * z.squeeze(1)).double() + self.shifts[species]
        out = {"energies": energies, "last_layer": x}
        if sketched:
            gradient = torch.ones_like(z)
            sketch = torch.zeros(0, dtype=z.dtype, device=z.device)
            at = len(inputs) - 1
            for back in self.layers[::-1]:
                term = back.sketch(inputs[at], gradient)  # pyright: ignore[reportCallIssue]
                sketch = term if sketch.dim() == 1 else sketch + term
                if at > 0:
                    gradient = (gradient @ back.weight) * slopes[at - 1]  # pyright: ignore[reportOperatorIssue]
                at -= 1
            out["sketch"] = sketch
        return out

    def invariants(self, vectors: Tensor, first: Tensor, second: Tensor, species: Tensor) -> Tensor:
        """Invariant features [n_atoms, n_features]."""
        n, nb = species.shape[0], self.n_basis
        r = vectors.square().sum(1, keepdim=True).sqrt()
        unit = vectors / r
        inside = 0.5 * (1 + torch.cos(torch.clamp(r, max=self.cutoff) * (math.pi / self.cutoff)))
        bells = self.norm * torch.exp(-self.width * (r - self.centres).square()) * inside
        beta = self.beta[species[first], species[second]] * self.centres.shape[0] ** -0.5
        radial = torch.bmm(bells[:, None, :], beta)  # [n_pairs, 1, n_basis]
        power = torch.ones_like(r)
        moments: list[Tensor] = []
        for rank in range(self.l_max + 1):
            if rank > 0:
                power = (power[:, :, None] * unit[:, None, :]).flatten(1)
            empty = torch.zeros(n, power.shape[1], nb, dtype=vectors.dtype, device=vectors.device)
            moments.append(empty.index_add(0, first, power[:, :, None] * radial))
        scalars = moments[0].squeeze(1)
        if self.l_max == 0:
            return scalars.index_select(1, self.columns)
        matrices: list[Tensor] = []
        for moment in moments[1:]:
            rows = moment.reshape(n, -1, 3 * nb)
            square = (rows.transpose(1, 2) @ rows).view(n, 3, nb, 3, nb)
            matrices.append(square.transpose(2, 3).reshape(n, 9, nb * nb))
        if self.l_max == 3:
            mixed = moments[1].transpose(1, 2) @ moments[3].reshape(n, 3, 9 * nb)
            matrices.append(mixed.view(n, nb, 9, nb).transpose(1, 2).reshape(n, 9, nb * nb))
        third = self.identity.expand(n, 9, 1)
        if self.l_max >= 2:
            third = torch.cat([third, moments[2]], dim=2)
        closed = third.transpose(1, 2) @ torch.stack(matrices, dim=2).flatten(2)
        return torch.cat([scalars, closed.flatten(1)], dim=1).index_select(1, self.columns)


class _Layer(nn.Module):
    """z = 0.1 b + W x, with the projections of its gradients (Eq. 20), if there are any."""

    weight: Tensor
    bias: Tensor
    inner: Tensor
    outer: Tensor

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.factor = BIAS_FACTOR
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("inner", weight.new_zeros(0, weight.shape[1] + 1))
        self.register_buffer("outer", weight.new_zeros(0, weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.bias + x @ self.weight.T

    @torch.jit.export
    def sketch(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The layer's part of the sketched gradients [n, n_projections]."""
        return (gradient @ self.outer.T) * (self.factor * self.inner[:, -1] + x @ self.inner[:, :-1].T)


def _networks(model: nn.Module) -> list[_Network]:
    """The single network, or those of an ensemble."""
    if isinstance(model, GMNN):
        return [_Network(model, None)]
    stack = getattr(model, "stack", None)
    if isinstance(stack, GMNNStack):
        return [_Network(stack, member) for member in range(stack.n_members)]
    raise InputError(f"a {type(model).__name__} cannot be exported: only GM-NN and ensembles of it are")
