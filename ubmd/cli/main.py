"""The console command ``ubmd``: each subcommand is a Hydra application.

Only the standard library is imported here, so that ``ubmd --help`` answers at once; :mod:`ubmd.cli.app` composes,
checks and runs.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from ubmd import interruption, secrecy
from ubmd.errors import InputError, system_refusal
from ubmd.version import __version__


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
            "ubmd train data.train=my.extxyz model=gmnn_small training=huber callbacks=ema",
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
        "label",
        "energies, forces and stress of structures by a reference method",
        "ubmd.commands.label:label",
        (
            "ubmd label structures=my.xyz reference.calculator._target_=ase.calculators.emt.EMT",
            "ubmd label structures=my.xyz reference=ff19sb",
            "ubmd label structures=my.xyz reference=ff19sb labelling.max_force=null",
        ),
    ),
)
COMMANDS: dict[str, Command] = {command.name: command for command in _COMMANDS}

COMPARE = "compare"
"""The command that takes folders instead of a configuration: :mod:`ubmd.commands.compare`."""
CHECK = "check"
"""The other one: :mod:`ubmd.commands.check`."""
_SUMMARIES = {command.name: command.summary for command in _COMMANDS} | {
    COMPARE: "finished runs side by side: tables and learning curves, mean and deviation over seeds",
    CHECK: "whether the files of run folders are what was written",
}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports bad flags the way every other bad input is reported."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _parser(command: Command) -> argparse.ArgumentParser:
    parser = Parser(prog=f"ubmd {command.name}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination (a=1,2 b=x,y)")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"], help="print the configuration, run nothing")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: fill in the references")
    parser.add_argument("--info", choices=["defaults", "defaults-tree", "config", "searchpath", "plugins"])
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own configurations")
    return parser


def overview() -> str:
    """The text of ``ubmd --help``."""
    width = max(map(len, _SUMMARIES))
    lines = [
        "ubmd: uncertainty-biased molecular dynamics and active learning of interatomic potentials",
        "",
        "usage: ubmd COMMAND [key=value ...]",
        "",
        "commands:",
        *(f"  {name:<{width}}  {summary}" for name, summary in _SUMMARIES.items()),
        "",
        "ubmd COMMAND --help lists the configuration groups, their options and the keys of a command.",
        "ubmd --version prints the version.",
    ]
    return "\n".join(lines)


def find(name: str) -> Command:
    """The command of a name."""
    if name in COMMANDS:
        return COMMANDS[name]
    near = get_close_matches(name, _SUMMARIES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"{name} is not a command; {hint}(valid: {', '.join(_SUMMARIES)})")


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"ubmd {__version__}")
        return 0
    if argv[0] == COMPARE:
        from ubmd.commands.compare import compare

        return compare(argv[1:])
    if argv[0] == CHECK:
        from ubmd.commands.check import check

        return check(argv[1:])
    command = find(argv[0])
    options = _parser(command).parse_intermixed_args(list(argv[1:]))

    from ubmd.cli import app, command_help

    with app.open_hydra(options.config_dir) as hydra:
        if options.help:
            print(command_help.help_text(hydra, command, options.overrides, flags=_parser(command).format_help()))
        elif options.cfg is not None:
            print(
                app.configuration_text(hydra, command, options.overrides, options.cfg, options.resolve),
                end="",
            )
        elif options.info is not None:
            hydra.show_info(options.info, config_name=command.config_name, overrides=options.overrides)
        else:
            with interruption.shielded():  # what a signal breaks off while it is imported may end as any error
                return app.run(hydra, command, options.overrides, multirun=options.multirun)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ubmd`` with the given arguments (those of the process by default); returns the exit code.

    0: done; 1: an error, after its traceback; 2: bad input, after one sentence; 3: a run that ended before it had the
    data that it was to have, after one sentence; 130, 143, 138: interrupted by Ctrl-C, SIGTERM, SIGUSR1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no Å must not end a run
    own = argv is None  # the process is ubmd's
    if argv is None:
        argv = sys.argv[1:]
        sys.argv[1:] = map(secrecy.hide_override, argv)  # which wandb keeps
    try:
        with interruption.handled(to_the_end=own):
            return _run(argv)
    except InputError as error:
        print(f"ubmd: error: {secrecy.hide(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ubmd learn --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        refusal = system_refusal(error)
        if refusal is None:
            raise
        print(f"ubmd: error: {secrecy.hide(str(refusal))}", file=sys.stderr)
        return 2
    except (interruption.Interrupted, KeyboardInterrupt) as signal:
        print(interruption.SENTENCE, file=sys.stderr)
        return signal.code if isinstance(signal, interruption.Interrupted) else 130
