from __future__ import annotations

from dataclasses import dataclass

import torch

from ubmd.cli.comments import comments_of, parameter_doc
from ubmd.dynamics.explore import WalkerExploration

TEXT = """\
# @package _global_
# A title (Eqs. 5-8, Eq. 9) over
# two lines. What follows it:
#   ubmd learn something=else
# The end.
# of the first key, in spite of where it is
a: 1 # beside: it
# above
# it
b: "#1" # after a hash
c: # of a block
  d: [1, 2] # of a list
  e: {f: "???"} # of a mapping

  # below nothing

  g:
    - h
# not of any key
"""


def test_comments_of_a_file() -> None:
    found = comments_of(TEXT)
    assert found.title == "A title (Eqs. 5-8, Eq. 9) over two lines."
    assert found.header.startswith(f"{found.title} What follows it: The end.")
    assert found.keys == {
        "a": "beside: it",
        "b": "above it after a hash",
        "c": "of a block",
        "c.d": "of a list",
        "c.e": "of a mapping",
        "c.e.f": "",
        "c.g": "",
    }


def test_the_header_of_a_file_with_one_key_is_about_it() -> None:
    assert comments_of("# About it.\nit:\n  part: 1\n").keys == {"it": "About it.", "it.part": ""}
    assert comments_of("# About it.\nit: 1 # more\n").keys == {"it": "more"}
    assert comments_of("# Nothing.\n{}\n").title == "Nothing."
    assert comments_of("").keys == comments_of("- 1\n- 2 # two\n").keys == {}


@dataclass
class Fields:
    """A class.

    Args:
        first, second: of two,
            over ``two`` lines.

            Not this.
        *rest: of :class:`~ubmd.errors.InputError`: others.
    """

    first: int
    """Not read, as the above says it."""
    third: int
    """Of the
    third."""
    fourth: int


class Inherits(Fields):
    pass


def test_docstrings_of_parameters() -> None:
    assert parameter_doc(Inherits, "second") == parameter_doc(Fields, "first") == "of two, over two lines."
    assert parameter_doc(Fields, "rest") == "of InputError: others."
    assert parameter_doc(Inherits, "third") == "Of the third."
    assert parameter_doc(Fields, "fourth") == parameter_doc(Fields, "fifth") == parameter_doc(len, "obj") == ""
    assert parameter_doc(torch.optim.Adam, "eps").startswith("term added to the denominator")
    assert parameter_doc(WalkerExploration, "skin").startswith("width of the neighbour lists")
