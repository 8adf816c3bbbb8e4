"""The experiments that ``ubmd init`` writes."""

from __future__ import annotations

__all__ = ["ATOMS", "BY_EMT", "BY_XTB", "COUNTS", "EMT", "EXAMPLES", "GIVEN", "TEXTS"]

COUNTS = {
    "molecule": {
        "steps": 2000,
        "batch": 8,
        "initial": 8,
        "structures": 104,
        "acquired": 16,
        "walkers": 8,
        "walker_steps": 10000,
        "tested": 100,
    },
    "crystal": {
        "steps": 1000,
        "batch": 8,
        "initial": 8,
        "structures": 72,
        "acquired": 16,
        "walkers": 8,
        "walker_steps": 4000,
        "tested": 50,
    },
    "dataset": {"steps": 2000, "batch": 8},
}
"""Numbers in the texts, by their names there; the arguments of :class:`~ubmd.cli.init.Counts`."""

ATOMS = {"molecule": 9, "crystal": 32, "dataset": 20}
"""Of the examples."""

EXAMPLES = {
    "molecule": """\
  structure: # ethanol; your own: `structure: my.xyz`, or instead `smiles: CC(=O)NC` (pip install 'ubmd[rdkit]')
    _target_: ase.build.molecule
    name: CH3CH2OH
""",
    "crystal": """\
  structure: # 32 atoms of copper; your own: `structure: my.cif`, and another reference
    _target_: ase.build.make_supercell
    prim:
      _target_: ase.build.bulk
      name: Cu
      cubic: true
    P: [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
""",
    "dataset": """\
  train: train.extxyz # your labelled structures
""",
}
GIVEN = {"molecule": "  structure: FILE\n", "crystal": "  structure: FILE\n", "dataset": "  train: FILE\n"}

EMT = frozenset({"Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"})
"""Elements of ASE's effective medium theory."""
BY_EMT = {
    "REFERENCE": "ase # computes the labels; `ubmd learn --help reference` lists others, e.g. cp2k",
    "CALCULATOR": """\
reference:
  calculator:
    _target_: ase.calculators.emt.EMT # any calculator of ASE that knows the stress; this one, for a few metals, is fast
""",
}
BY_XTB = {
    "REFERENCE": "tblite # GFN2-xTB, pip install 'ubmd[xtb]'; Γ point only: give a supercell, or take cp2k",
    "CALCULATOR": "",
}

_HEAD = """\
# ESTIMATE
# What is not here has ubmd's defaults: `ubmd COMMAND experiment=NAME --cfg job` prints all of it and
# `ubmd COMMAND --help KEY` explains a key or a group. The same command continues a run that was interrupted.
"""

TEXTS = {
    "molecule": f"""\
# @package _global_
# A potential of a molecule by active learning, with GFN2-xTB (pip install 'ubmd[xtb]'):
#   ubmd learn experiment=my_molecule
{_HEAD.replace("COMMAND", "learn").replace("NAME", "my_molecule")}
defaults:
  - override /reference: tblite # computes the labels; `ubmd learn --help reference` lists others
  - override /size: small # of the network; paper is larger, more accurate and slower
  - override /training: fast # fits of constant cost
  - override /data/test: perturbed # held-out structures that the reference labels; for your own: data.test: FILE
  - _self_

name: my_molecule # the folder of the runs, in runs/
threads: 1 # networks this small gain nothing from more

system:
STRUCTURE
  n_initial: <initial> # slightly perturbed copies, labelled before the first round
  variables: {{}} # followed and drawn, e.g. {{turn: {{_target_: ubmd.observables.Torsion, atoms: [0, 1, 2, 3]}}}}

learning:
  max_structures: <structures> # labelled structures at which the run ends; it may be raised later
  batch_size: <acquired> # new ones in a round

trainer:
  max_steps: <steps> # of a fit

data:
  batch_size: <batch> # structures in a step of it
  test:
    sample:
      n_structures: <tested>
      displacement: 0.1 # Å

bias:
  tau: 0.25 # how strongly walkers are driven to where the potential is uncertain; 0 for not at all
  every: 4 # steps from one evaluation of the bias to the next

dynamics:
  n_walkers: <walkers>
  integrator:
    temperature: 300.0 # K
    dt: 0.5 # fs
  stopping:
    uncertainty_threshold: 1.5 # eV/Å, at which a walker stops: what it has found is labelled
    max_steps: <walker_steps>
  frame_interval: 20 # steps between structures that may be selected
  checkpoint_interval: 500 # steps between savings, of what an interrupted run goes on from
""",
    "crystal": f"""\
# @package _global_
# A potential of a crystal by active learning at constant pressure:
#   ubmd learn experiment=my_crystal
{_HEAD.replace("COMMAND", "learn").replace("NAME", "my_crystal")}
defaults:
  - override /reference: REFERENCE
  - override /size: small # of the network; paper is larger, more accurate and slower
  - override /training: fast # fits of constant cost
  - override /bias: stress # drives the cell to where the potential is uncertain; uncertainty drives the atoms
  - override /dynamics: npt
  - override /data/test: perturbed # held-out structures that the reference labels; for your own: data.test: FILE
  - _self_

name: my_crystal # the folder of the runs, in runs/
threads: 1 # networks this small gain nothing from more

CALCULATOR
system:
STRUCTURE
  n_initial: <initial> # slightly perturbed copies, labelled before the first round
  displacement: 0.05 # Å
  strain: 0.02 # of the cell

learning:
  max_structures: <structures> # labelled structures at which the run ends; it may be raised later
  batch_size: <acquired> # new ones in a round

training:
  loss:
    stress: 0.01 # dynamics at constant pressure follow the stress

trainer:
  max_steps: <steps> # of a fit

data:
  batch_size: <batch> # structures in a step of it
  test:
    sample:
      n_structures: <tested>
      displacement: 0.1 # Å
      strain: 0.03

dynamics:
  n_walkers: <walkers>
  integrator:
    temperature: 600.0 # K
    pressure: 0.0 # MPa; a list is for the walkers in turn
    dt: 1.0 # fs
    bulk_modulus: 100.0 # GPa, an estimate; about 10 for soft crystals
  stopping:
    uncertainty_threshold: 1.0 # eV/Å, at which a walker stops: what it has found is labelled
    max_steps: <walker_steps>
  frame_interval: 20 # steps between structures that may be selected
  checkpoint_interval: 500 # steps between savings, of what an interrupted run goes on from
""",
    "dataset": f"""\
# @package _global_
# A potential, with calibrated uncertainties, of a data set that is labelled already:
#   ubmd train experiment=my_dataset
{_HEAD.replace("COMMAND", "train").replace("NAME", "my_dataset")}
defaults:
  - override /size: small # of the network; paper is larger, more accurate and slower
  - override /training: fast # a fit of constant cost
  - _self_

name: my_dataset # the folder of the runs, in runs/

data:
STRUCTURE
  valid: null # structures that validate and calibrate; null takes a tenth of train
  test: null # held-out structures, for errors alone
  batch_size: <batch> # structures in a step
  keys: # what labels are called, if not REF_energy and REF_forces
    energy: null
    forces: null
  units: # of energies, and what follows from them; `ubmd train --help data.units` lists more
    energy: eV
    forces: null # eV/Å

training:
  loss:
    stress: 0.0 # 0.01 to train stress too, where labels have it

trainer:
  max_steps: <steps>
""",
}
