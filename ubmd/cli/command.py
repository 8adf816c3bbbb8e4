"""The subcommands, each a Hydra application, and those that take folders."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from ubmd.errors import InputError

__all__ = ["CHECK", "COMMANDS", "COMPARE", "FIGURES", "INIT", "REPORT", "SUMMARIES", "Command", "find"]


@dataclass(frozen=True)
class Command:
    """A subcommand: which configuration it composes and which function receives it."""

    name: str
    """The word on the command line."""
    summary: str
    """What it does, in a line."""
    function: str
    """``module:function``, imported when needed; takes the configuration, returns None or a float."""
    examples: tuple[str, ...]
    """Command lines for the help text."""
    resumable: bool = False
    """Whether a sweep may pass over a job that it has finished before, because nothing but the job's
    configuration says what it does."""

    @property
    def config_name(self) -> str:
        """Name of the primary configuration, ``conf/<name>.yaml``."""
        return self.name


_COMMANDS = (
    Command(
        "learn",
        "active learning: fit, explore with biased dynamics, select, label, round by round",
        "ubmd.commands.learn:learn",
        (
            "ubmd learn experiment=ala2_demo",
            "ubmd learn experiment=ala2_demo seed=1 name=my_run",
            "ubmd learn experiment=ala2_demo sweep=uncertainty -m",
        ),
        resumable=True,
    ),
    Command(
        "train",
        "fit one potential to a data set of labelled structures",
        "ubmd.commands.train:train",
        (
            "ubmd train data.train=my.extxyz data.test=held_out.extxyz",
            "ubmd train data.train=my.extxyz size=small training=huber callbacks=ema",
            "ubmd train data.train=my.extxyz training.start=RUN/model.ckpt trainer.max_epochs=100",
        ),
    ),
    Command(
        "evaluate",
        "errors and calibration of a trained potential on labelled structures",
        "ubmd.commands.evaluate:evaluate",
        (
            "ubmd evaluate potential=RUN/model.ckpt structures=test.extxyz",
            "ubmd evaluate potential=RUN/rounds/004/model.ckpt structures=test.extxyz device=cpu",
            "ubmd evaluate -m potential=A/model.ckpt,B/model.ckpt structures=test.extxyz",
        ),
    ),
    Command(
        "md",
        "molecular dynamics with a trained potential, biased or not",
        "ubmd.commands.md:run_md",
        (
            "ubmd md potential=RUN/rounds/004/model.ckpt system.structure=my.xyz bias.tau=0",
            "ubmd md potential=RUN/rounds/004/model.ckpt system.structure=my.xyz bias.tau=0.25",
            "ubmd md -m potential=RUN/model.ckpt system.structure=my.xyz dynamics.integrator.temperature=300,600",
        ),
    ),
    Command(
        "committee",
        "trained potentials as one, with the uncertainty of an ensemble; nothing is trained",
        "ubmd.commands.committee:committee",
        (
            "ubmd committee members=[A/model.ckpt,B/model.ckpt] labelled=held_out.extxyz",
            "ubmd committee members=[A/model.ckpt,B/model.ckpt] labelled=held_out.extxyz shift=true",
            "ubmd committee members=[A/model.ckpt,B/model.ckpt,C/model.ckpt]",
        ),
    ),
    Command(
        "label",
        "energies, forces and stress of structures by a reference method",
        "ubmd.commands.label:label",
        (
            "ubmd label structures=my.xyz reference.calculator._target_=ase.calculators.emt.EMT",
            "ubmd label structures=my.xyz reference=ff19sb",
            "ubmd label structures=my.xyz reference=ff19sb labelling.max_force=null",
        ),
    ),
    Command(
        "serve",
        "forces of a trained potential, biased or not, for i-PI",
        "ubmd.commands.serve:serve",
        (
            "ubmd serve potential=RUN/rounds/004/model.ckpt address=unix:ubmd system.structure=init.xyz",
            "ubmd serve potential=RUN/model.ckpt address=unix:ubmd system.structure=init.xyz bias.tau=0.25",
            "ubmd serve potential=RUN/model.ckpt address=localhost:31415 system.structure=init.xyz uncertainties=true",
        ),
    ),
    Command(
        "export",
        "a trained potential as a file for programs without ubmd: metatomic",
        "ubmd.commands.export:export",
        (
            "ubmd export potential=RUN/rounds/004/model.ckpt file=model.pt",
            "ubmd export potential=RUN/model.ckpt to=metatomic file=model.pt dtype=float32",
            "ubmd export -m potential=A/model.ckpt,B/model.ckpt",
        ),
    ),
    Command(
        "convert",
        "walkers' trajectories for other programs: H5MD, ASE, extended XYZ",
        "ubmd.commands.convert:convert",
        (
            "ubmd convert trajectory=RUN to=h5md",
            "ubmd convert trajectory=RUN/trajectory.h5 walker=0 to=traj file=walker.traj",
            "ubmd convert trajectory=RUN/rounds/004/trajectory.h5 to=extxyz file=frames.extxyz",
        ),
    ),
)
COMMANDS: dict[str, Command] = {command.name: command for command in _COMMANDS}

COMPARE = "compare"
"""The command that takes folders instead of a configuration: :mod:`ubmd.commands.compare`."""
FIGURES = "figures"
"""Another one: :mod:`ubmd.commands.figures`."""
REPORT = "report"
""":mod:`ubmd.commands.report`, likewise."""
CHECK = "check"
"""And another one: :mod:`ubmd.commands.check`."""
INIT = "init"
""":mod:`ubmd.cli.init`, which writes one."""
SUMMARIES = {command.name: command.summary for command in _COMMANDS} | {
    COMPARE: "finished runs side by side: tables and learning curves, mean and deviation over seeds",
    FIGURES: "the figures and tables of the paper, from finished runs",
    REPORT: "a run on one page, report.html; written at the end of `ubmd learn` as well",
    INIT: "an experiment of your own to start from: a molecule, a crystal or a data set",
    CHECK: "whether the files of run folders are what was written",
}


def find(name: str) -> Command:
    """The command of a name."""
    if name in COMMANDS:
        return COMMANDS[name]
    near = get_close_matches(name, SUMMARIES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"{name} is not a command; {hint}(valid: {', '.join(SUMMARIES)})")
