"""Stands in for ``cp2k_shell``: speaks its protocol; energy and forces are those of a harmonic well.

What the output file says is up to the first argument: ``converged``, ``unconverged``, ``abort``, ``silent``.
"""

import sys
from pathlib import Path

import numpy as np

SAYS = {
    "converged": "  *** SCF run converged in     9 steps ***\n",
    "unconverged": " *** WARNING in qs_scf.F:601 :: SCF run NOT converged ***\n",
    "silent": "",
}


def numbers(count):
    return np.array([[float(x) for x in sys.stdin.readline().split()] for _ in range(count)])


def main():
    does = sys.argv[1]
    positions = np.zeros((0, 3))
    output = Path()
    while line := sys.stdin.readline().split():
        answer = []
        match line[0]:
            case "VERSION":
                answer = ["CP2K Shell Version: 6.0"]
            case "WRITE_FILE":
                name = sys.stdin.readline().strip()
                count = int(sys.stdin.readline())
                Path(name).write_text("".join(sys.stdin.readline() for _ in range(count)))
                sys.stdin.readline()
            case "LOAD":
                if does == "abort":
                    Path(line[2]).write_text(ABORT)
                    sys.exit(1)
                answer = ["1"]
                output = Path(line[2])
            case "SET_CELL":
                numbers(3)
            case "SET_POS":
                positions = numbers(int(sys.stdin.readline()) // 3)
                sys.stdin.readline()
                answer = ["1.0"]
            case "EVAL_EF":
                output.write_text(SAYS[does])
            case "GET_E":
                answer = [repr(0.5 * float((positions**2).sum()))]
            case "GET_F":
                answer = [str(positions.size), *(" ".join(map(repr, x)) for x in (-positions).tolist()), "* END"]
            case "GET_STRESS":
                stress = np.arange(9.0).reshape(3, 3)
                answer = [" ".join(str(x) for x in (stress + stress.T).flat)]
            case "EXIT":
                return
        print(*answer, "* READY", sep="\n", flush=True)


ABORT = """
 *******************************************************************************
 *   ___                                                                       *
 *  /   \\                                                                      *
 * [ABORT]                                                                     *
 *  \\___/   The requested basis set <XX> for element <Si> was not found in the *
 *    |                      basis set files <BASIS_MOLOPT>                    *
 *  O/|                                                                        *
 * /| |                                                                        *
 * / \\                                          aobasis/basis_set_types.F:1509 *
 *******************************************************************************

 ===== Routine Calling Stack =====
"""

print("* READY", flush=True)
main()
