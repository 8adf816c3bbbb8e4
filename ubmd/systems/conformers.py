"""Structures of a molecule from its SMILES: conformers by distance geometry with RDKit (ETKDG)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from ubmd.errors import InputError
from ubmd.schema import shown

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["conformers"]

EMBEDDED = 50
"""Embeddings that are tried; most of a small molecule's fall together."""
SEED = 0x5EED
"""Of the embeddings: a molecule has the same conformers in every run."""
DISTINCT = 0.1
"""Å; conformers that a rotation makes equal to less are one, root mean square over atoms that are no hydrogen of a
carbon: a methyl group turned by 120 degrees is the same."""
FORCE_FIELD_STEPS = 2000


def conformers(smiles: str) -> list[Atoms]:
    """Conformers of a molecule, that of the lowest energy first.

    ETKDGv3 embeds them (Wang et al., J. Chem. Inf. Model. 2020, 60, 2044), MMFF94 or, where that lacks parameters,
    UFF relaxes and orders them. Where both do, they stay as they were embedded.

    Args:
        smiles: with or without hydrogens, which are added.

    Returns:
        structures without a cell. ``info`` has a ``charge`` (e) if that of the SMILES is not zero and a ``spin``
        (2S + 1) if it has unpaired electrons, all taken to be parallel; isotopes have their masses.

    Raises:
        InputError: for a text that is no SMILES, for several fragments, atoms without an element, stereocentres that
            are not specified, and molecules that cannot be embedded.
        ImportError: without RDKit.
    """
    return [atoms.copy() for atoms in _conformers(smiles)]


@cache
def _conformers(smiles: str) -> tuple[Atoms, ...]:
    from rdkit import rdBase

    with rdBase.BlockLogs():  # what is wrong is said in one sentence
        molecule = _embedded(_parsed(smiles), smiles)
        energies = _relaxed(molecule)
        order = np.argsort(energies, kind="stable").tolist()
        return tuple(_structure(molecule, conformer) for conformer in _distinct(molecule, order))


def _parsed(smiles: str) -> Mol:
    """The molecule with its hydrogens."""
    from rdkit import Chem

    molecule: Any = Chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise InputError(f"system.smiles={shown(smiles)} is no SMILES of a molecule; correct it, e.g. CC(=O)NC")
    fragments = Chem.GetMolFrags(molecule)
    if len(fragments) > 1:
        raise InputError(
            f"system.smiles={smiles} has {len(fragments)} fragments, but not where they are; give one molecule, "
            "or all of them by a file, system.structure=my.xyz"
        )
    if any(not atom.GetAtomicNum() for atom in molecule.GetAtoms()):
        raise InputError(f"system.smiles={smiles} has an atom without an element (*); name it")
    open_centres = [s for s in Chem.FindPotentialStereo(molecule) if s.specified == Chem.StereoSpecified.Unspecified]
    if open_centres:
        raise InputError(
            f"system.smiles={smiles} does not say which stereoisomer it is ({len(open_centres)} open centres or double "
            f"bonds); choose one, {_isomers(molecule)}"
        )
    return Chem.AddHs(molecule)


def _isomers(molecule: Mol) -> str:
    """Some stereoisomers of a molecule as SMILES."""
    from rdkit.Chem import MolToSmiles
    from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions

    options = StereoEnumerationOptions(onlyUnassigned=True, unique=True, maxIsomers=4)
    return " or ".join(MolToSmiles(isomer) for isomer in EnumerateStereoisomers(molecule, options=options))


def _embedded(molecule: Mol, smiles: str) -> Mol:
    from rdkit.Chem import rdDistGeom

    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = SEED
    parameters.pruneRmsThresh = DISTINCT
    found = list(rdDistGeom.EmbedMultipleConfs(molecule, EMBEDDED, parameters))
    if not found:  # slower, but finds what crowded and caged molecules need
        parameters.useRandomCoords = True
        found = list(rdDistGeom.EmbedMultipleConfs(molecule, EMBEDDED, parameters))
    if not found:
        raise InputError(
            f"system.smiles={smiles} cannot be embedded in space by RDKit; check it, or give a file, "
            "system.structure=my.xyz"
        )
    return molecule


def _relaxed(molecule: Mol) -> list[float]:
    """Relaxes the conformers with a force field; their energies, or zeros without one."""
    from rdkit.Chem import rdForceFieldHelpers

    for has, optimise in (
        (rdForceFieldHelpers.MMFFHasAllMoleculeParams, rdForceFieldHelpers.MMFFOptimizeMoleculeConfs),
        (rdForceFieldHelpers.UFFHasAllMoleculeParams, rdForceFieldHelpers.UFFOptimizeMoleculeConfs),
    ):
        if has(molecule):
            return [energy for _, energy in optimise(molecule, maxIters=FORCE_FIELD_STEPS)]
    return [0.0] * molecule.GetNumConformers()


def _distinct(molecule: Mol, order: list[int]) -> list[int]:
    """The conformers that differ from all before them in ``order``; ids of conformers count from 0."""
    from rdkit.Chem import rdMolAlign

    compared = [
        (atom.GetIdx(), atom.GetIdx())
        for atom in molecule.GetAtoms()
        if atom.GetAtomicNum() != 1 or any(other.GetAtomicNum() != 6 for other in atom.GetNeighbors())
    ]
    kept: list[int] = []
    for conformer in order:
        if all(rdMolAlign.AlignMol(molecule, molecule, conformer, other, compared) >= DISTINCT for other in kept):
            kept.append(conformer)
    return kept


def _structure(molecule: Mol, conformer: int) -> Atoms:
    positions = molecule.GetConformer(conformer).GetPositions()
    parts = list(molecule.GetAtoms())
    atoms = Atoms([part.GetAtomicNum() for part in parts], positions - positions.mean(axis=0))
    if any(part.GetIsotope() for part in parts):
        own = atoms.get_masses()
        atoms.set_masses([part.GetMass() if part.GetIsotope() else m for part, m in zip(parts, own, strict=True)])  # pyright: ignore
    charge = sum(part.GetFormalCharge() for part in parts)
    unpaired = sum(part.GetNumRadicalElectrons() for part in parts)
    if charge:
        atoms.info["charge"] = charge
    if unpaired:
        atoms.info["spin"] = unpaired + 1
    return atoms
