"""Drills: runs killed at random moments, damaged files, hours of small runs, full disks.

    python scripts/drill.py kills [--kills 60] [--terms 20] [--seed 0]
    python scripts/drill.py fuzz [--inputs 100000] [--seed 0]
    python scripts/drill.py soak [--minutes 120]
    python scripts/drill.py damages [--moments learn:fit learn:end]
    python scripts/drill.py disks [--sizes 16] [--others 3] (as root)

Each prints its cases and one line of figures; the exit code is 1 if something that has to hold did not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # the ways of damaging files are those of the tests

from drills import damages, disks, fuzz, kills, soak

DRILLS = {"kills": kills, "fuzz": fuzz, "soak": soak, "damages": damages, "disks": disks}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="drill", required=True)
    for name, drill in DRILLS.items():
        drill.add_arguments(commands.add_parser(name, help=(drill.__doc__ or "").splitlines()[0]))
    options = parser.parse_args()
    return DRILLS[options.drill].run(options)


if __name__ == "__main__":
    sys.exit(main())
