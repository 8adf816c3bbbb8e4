"""Stands in for ORCA: reads ``orca.inp``, writes ``orca.engrad`` and the output; a harmonic well in atomic units.

How it ends is up to the first argument: ``converged``, ``unconverged``, ``crash``.
"""

import sys
from pathlib import Path

import numpy as np

BOHR = 0.529177210903  # Å

does, name = sys.argv[1], Path(sys.argv[2])
text = name.read_text()
keywords = text.splitlines()[0].split()
assert keywords[0] == "!"
assert "EnGrad" in keywords
block = text.partition("*xyz")[2].splitlines()
charge, multiplicity = map(int, block[0].split())
atoms = [line.split() for line in block[1 : block.index("*")]]
assert all(len(atom) == 4 for atom in atoms)  # no ghosts
x = np.array([[float(v) for v in atom[1:]] for atom in atoms]) / BOHR
if does == "crash":
    print("ORCA finished by error termination in LEANSCF")
    sys.exit(55)
if does == "unconverged":
    print("  ** ATTENTION: SCF NOT CONVERGED AFTER 125 CYCLES **")
    print("FINAL SINGLE POINT ENERGY (Wavefunction not fully converged!)  -1.0")
    sys.exit(0)
print("          *                SCF CONVERGED AFTER   9 CYCLES          *")
print(f"FINAL SINGLE POINT ENERGY {0.5 * (x**2).sum() + charge:25.12f}")
gradient = "\n".join(f"{v:21.12f}" for v in x.ravel())
name.with_suffix(".engrad").write_text(
    f"#\n# Number of atoms\n#\n {len(x)}\n#\n# The current total energy in Eh\n#\n{0.5 * (x**2).sum():22.12f}\n#\n"
    f"# The current gradient in Eh/bohr\n#\n{gradient}\n#\n# The atomic numbers and current coordinates in Bohr\n#\n"
)
print("                             ****ORCA TERMINATED NORMALLY****")
