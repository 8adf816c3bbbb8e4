"""Training of an interatomic potential as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.base import n_members, parameter_groups, repulsion_of
from ubmd.models.potential import Potential, Prediction
from ubmd.training.atomic_energies import held_atomic_energies
from ubmd.training.loss import Loss, MeanLoss, SquaredLoss, virial_triangle
from ubmd.training.sam import at_worst_neighbour
from ubmd.training.schedule import LinearDecay, schedule
from ubmd.training.start import correct_shift, load_weights
from ubmd.units import MPA

__all__ = ["LearningRates", "PotentialModule"]


HIGHEST_RATE = 1e6
"""A fit diverges long before; far above it, Adam's steps are no numbers of float32."""


@dataclass(frozen=True)
class LearningRates:
    """Initial learning rates of the groups of parameters; all decay linearly to zero.

    Args:
        readout: weights and biases of GM-NN's network.
        representation: coefficients of GM-NN's radial functions.
        shift: atomic shifts mu.
        scale: atomic scales rho.
        model: all other groups, such as the parameters of a model that makes no groups.
        groups: rates of groups by name, as the model's ``parameter_groups`` names them; they go before the others.
    """

    readout: float = 0.03
    representation: float = 0.02
    shift: float = 0.05
    scale: float = 0.001
    model: float = 0.001
    groups: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        named = {name: getattr(self, name) for name in _GROUPS}
        named |= {f"groups.{name}": rate for name, rate in (self.groups or {}).items()}
        for name, rate in named.items():
            if not 0 <= rate <= HIGHEST_RATE:
                raise InputError(f"training.learning_rates.{name}={rate} must be a number from 0 to {HIGHEST_RATE:g}")

    def of(self, group: str) -> float:
        """The rate of a group of parameters."""
        given = self.groups or {}
        return given[group] if group in given else getattr(self, group if group in _GROUPS else "model")


_GROUPS = ("readout", "representation", "shift", "scale", "model")


class PotentialModule(LightningModule):
    """Fits a potential to energies, forces and (if the loss weighs it) stress.

    Logs per epoch ``train/loss``; for validation and test, ``<stage>/energy_mae`` (eV),
    ``<stage>/force_mae`` (eV/Å), ``<stage>/energy_rmse_mev_per_atom``, ``<stage>/force_rmse_ev_per_ang``,
    with stress ``<stage>/virial_mae`` (eV) and ``<stage>/stress_rmse_mpa``; and ``valid/score``, by which the best
    weights are chosen: the loss per structure, like ``train/loss``. So what is kept is what the fit strives for, and
    the virial weighs as little as in the loss; a sum of the mean errors of energy, forces and virial, in eV, would
    leave the choice to the virial of large crystals alone.

    Args:
        model: the model of atomic energies, as :func:`~ubmd.models.scale_shift.make_model` makes it.
        loss: of a mini-batch.
        learning_rates: of the groups of parameters.
        optimizer: makes an optimizer of groups of parameters with their learning rates; None: Adam as in the paper.
        scheduler: makes a scheduler of it (:func:`~ubmd.training.schedule.schedule`); None: linear decay to zero.
        sam_radius: rho of sharpness-aware minimisation, the distance in the space of all parameters at which
            each step's gradient is taken (:mod:`ubmd.training.sam`); a step then costs two. 0: off.
        start: a potential (``model.ckpt``) whose weights to start from; None starts afresh.
        atomic_energies: energies of free atoms by chemical symbol, eV, which the shifts then are and stay; None: by
            regression on the training structures, and trained.

    Raises:
        InputError: for an ``optimizer`` or a ``scheduler`` that cannot be, a ``sam_radius`` out of range, a
            ``start`` that does not fit the model, or ``atomic_energies`` that are not those of its elements.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None = None,
        learning_rates: LearningRates | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        sam_radius: float = 0.0,
        start: str | None = None,
        atomic_energies: Mapping[str, float] | None = None,
    ):
        super().__init__()
        if not getattr(model, "trainable", True):
            raise InputError(
                f"model: a {type(model).__name__} is made of potentials that are trained already, which no fit "
                "changes; train its members one by one (ubmd train -m seed=0,1,2) and join them with `ubmd committee`"
            )
        if not 0 <= sam_radius <= 100:
            raise InputError(f"training.sam_radius={sam_radius} must be a number from 0, which is off, to 100")
        if sam_radius and n_members(model) > 1:
            # one step to the worst neighbour of all parameters together would tie the members to each other
            raise InputError(f"training.sam_radius={sam_radius} is for a single network; set it to 0 for an ensemble")
        self.potential = Potential(model)
        self.loss: Loss = loss or SquaredLoss()
        self.learning_rates = learning_rates or LearningRates()
        self._make_optimizer = optimizer or partial(torch.optim.Adam, eps=1e-7)
        self._make_scheduler = scheduler or LinearDecay
        # refused now rather than when the data are ready
        schedule(self._make_scheduler, self._optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}]), 1)
        self.stress = self.loss.stress > 0
        self.sam_radius = sam_radius
        self.started = False
        self._silent = False
        self.given = None if atomic_energies is None else held_atomic_energies(model, atomic_energies)
        if start is not None:
            self.start_from(start)
        self.mean_loss, self.score = MeanLoss(), MeanLoss()
        self.metrics = nn.ModuleDict({f"{stage}_metrics": self._metrics() for stage in ("valid", "test")})

    def _metrics(self) -> nn.ModuleDict:
        names: dict[str, Metric] = {
            "energy_mae": MeanAbsoluteError(),
            "force_mae": MeanAbsoluteError(),
            "energy_rmse_mev_per_atom": MeanSquaredError(squared=False),
            "force_rmse_ev_per_ang": MeanSquaredError(squared=False),
        }
        if self.stress:
            names |= {"virial_mae": MeanAbsoluteError(), "stress_rmse_mpa": MeanSquaredError(squared=False)}
        return nn.ModuleDict(names)

    @property
    def model(self) -> nn.Module:
        """The model of atomic energies."""
        return self.potential.model

    def start_from(self, path: str | Path, name: str = "training.start") -> None:
        """Takes the weights of a potential that ubmd wrote; ``name`` is what a message calls it.

        Raises:
            InputError: if it does not fit the model.
        """
        load_weights(self.model, path, name)
        self.started = True

    def initialise(self, batches: Iterable[AtomicBatch]) -> None:
        """Sets atomic energies by regression on the training structures (Eq. 10), or as they are given.

        With weights of an earlier fit, whose shifts are only corrected by what is missing. Those of a model with
        weights of elsewhere are all that is missing. What a repulsion has of the energies is none of theirs.
        """
        if self.started and self.given is None:
            correct_shift(self.potential, batches)
        if self.started and self.given is not None:
            self.model.give_shift(self.given)  # pyright: ignore[reportCallIssue]
        if self.started:
            return
        known = getattr(self.model, "pretrained", False)
        energies, compositions = [], []
        for batch in batches:
            assert batch.energy is not None
            energy = batch.energy.double()
            if known:
                energy = energy - self.potential(batch).energy
            elif (repulsion := repulsion_of(self.model, batch)) is not None:
                energy = energy - batch.sum_atoms(repulsion.energies)
            energies.append(energy)
            compositions.append(self.model.composition(batch))  # pyright: ignore[reportCallIssue]
        given = [] if self.given is None else [self.given]
        self.model.fit_scale_shift(torch.cat(energies), torch.cat(compositions), *given)  # pyright: ignore

    def forward(self, batch: AtomicBatch) -> Prediction:
        """Energies, forces and, if it is trained on, stress of a batch."""
        return self.potential(batch, stress=self.stress)

    def training_step(self, batch: AtomicBatch) -> Tensor:
        n = batch.n_systems
        loss = self._loss(batch) if n else self._no_loss()
        if not self._silent:
            if n:
                self.mean_loss.update(loss.detach(), n)
            self.log("train/loss", self.mean_loss, on_epoch=True, on_step=False)
        return loss

    def _loss(self, batch: AtomicBatch) -> Tensor:
        return self.loss(self.potential(batch, stress=self.stress, training=True), batch)

    def _no_loss(self) -> Tensor:
        """Zero with zero gradients, for a process that there are too few structures for in the last mini-batch."""
        return torch.stack([0.0 * p.sum().double() for p in self.parameters() if p.requires_grad]).sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiates by the parameters alone: the pair vectors are leaves too, with costly second derivatives.

        The loss is a sum over the mini-batch, of which each of several processes has a part; Lightning's strategies
        take the mean of their gradients.
        """
        loss = self.trainer.world_size * loss
        loss.backward(*args, inputs=[p for p in self.parameters() if p.requires_grad], **kwargs)

    def optimizer_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, epoch: int, batch_idx: int, optimizer: LightningOptimizer, optimizer_closure: Callable[[], Any]
    ) -> None:
        """A step by the gradient here or, with ``sam_radius``, at the worst point around.

        Clipping and all that hooks do to gradients comes after the closure, hence once and to the second one.
        """

        def sharpness_aware() -> Any:
            loss = optimizer_closure()
            with at_worst_neighbour(self.model.parameters(), self.sam_radius):
                self._silent = True
                optimizer_closure()
                self._silent = False
            return loss

        optimizer.step(closure=sharpness_aware if self.sam_radius else optimizer_closure)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the trainer is told to; the norm is that of each member of an ensemble by itself."""
        members = n_members(self.model)
        if members == 1 or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
        factor = (gradient_clip_val / (squares.sqrt() + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factor.view(members, *[1] * (gradient.ndim - 1)))

    def validation_step(self, batch: AtomicBatch) -> None:
        self._evaluate("valid", batch)

    def test_step(self, batch: AtomicBatch) -> None:
        self._evaluate("test", batch)

    def predict_step(self, batch: AtomicBatch) -> dict[str, Tensor]:
        prediction = self(batch)
        found = {"energy": prediction.energy, "forces": prediction.forces}
        return found if prediction.stress is None else found | {"stress": prediction.stress}

    def _evaluate(self, stage: str, batch: AtomicBatch) -> None:
        if not batch.n_systems:  # the part of a process for which there were too few
            return
        prediction = self(batch)
        assert batch.energy is not None
        assert batch.forces is not None
        if stage == "valid":
            self.score.update(self.loss(prediction, batch), batch.n_systems)
        pairs = {
            "energy_mae": (prediction.energy, batch.energy.double()),
            "force_mae": (prediction.forces, batch.forces),
            "energy_rmse_mev_per_atom": (
                1e3 * prediction.energy / batch.n_atoms,
                1e3 * batch.energy.double() / batch.n_atoms,
            ),
            "force_rmse_ev_per_ang": (prediction.forces, batch.forces),
        }
        if self.stress and batch.stress is not None:
            assert prediction.stress is not None
            known = batch.has_stress
            found, true = prediction.stress[known], batch.stress[known]
            pairs["stress_rmse_mpa"] = (found / MPA, true / MPA)
            volume = batch.volume[known]
            pairs["virial_mae"] = (virial_triangle(found, volume), virial_triangle(true, volume))
        for name, (found, true) in pairs.items():
            if len(found):
                self.metrics[f"{stage}_metrics"][name].update(found.contiguous(), true.contiguous())  # pyright: ignore

    def _log_metrics(self, stage: str) -> None:
        values = {}
        for name, metric in self.metrics[f"{stage}_metrics"].items():  # pyright: ignore
            # no structure may have a stress, in this process or in any
            if self.trainer.strategy.reduce_boolean_decision(metric.update_called, all=False):
                values[name] = metric.compute()
            metric.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()})
        if stage == "valid":
            self.log("valid/score", self.score)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("valid")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def configure_optimizers(self) -> Any:
        """The optimizer, with one learning rate a group of parameters, and the scheduler over the whole fit."""
        if self.sam_radius and self.trainer.accumulate_grad_batches != 1:
            raise InputError(
                f"training.sam_radius={self.sam_radius} needs trainer.accumulate_grad_batches=1; use larger batches"
            )
        rates = self.learning_rates
        groups = [{"params": p, "lr": rates.of(name)} for name, p in parameter_groups(self.model).items()]
        optimizer = self._optimizer(groups)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        scheduler = schedule(self._make_scheduler, optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        try:
            return self._make_optimizer(groups)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer: {error}") from error
