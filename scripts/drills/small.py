"""The demos made so small that a whole run takes seconds, many of them the start of the process."""

from __future__ import annotations

SMALL = (
    "logger=csv",
    "system.n_initial=4",
    "model.n_basis=2",
    "model.n_gauss=4",
    "model.hidden=[8,8]",
    "uncertainty.features.n_projections=16",
    "trainer.max_steps=60",
    "trainer.check_val_every_n_epoch=3",
    "learning.checkpoint_epochs=7",
    "learning.batch_size=4",
    "learning.max_structures=12",
    "labelling.max_force=50",
    "dynamics.n_walkers=4",
    "dynamics.frame_interval=5",
    "dynamics.checkpoint_interval=10",
    "dynamics.stopping.max_steps=60",
    "dynamics.stopping.uncertainty_threshold=1000",
    "bias.window=20",
    "data.test.sample.n_structures=10",
)
DEMOS: dict[str, tuple[str, ...]] = {
    "ala2": ("experiment=ala2_demo", "dynamics.integrator.dt=0.1", "data.test.sample.duration_ps=1", *SMALL),
    "bulk": ("experiment=bulk_demo", "dynamics.integrator.dt=1.0", *SMALL),
}
"""Overrides of `ubmd learn` for three rounds each."""
COUNTED: dict[str, str] = {
    "ala2": "reference._target_=drills.counting.CountedFF19SB",
    "bulk": "reference._target_=drills.counting.CountedASE",
}
"""Overrides by which a demo's labels are counted."""
