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

from ubmd import earlier, interruption, secrecy
from ubmd.arguments import Parser, quoted
from ubmd.cli.command import CHECK, COMPARE, FIGURES, INIT, REPORT, SUMMARIES, Command, find
from ubmd.errors import InputError, system_refusal
from ubmd.version import __version__


def _parser(command: Command) -> argparse.ArgumentParser:
    parser = Parser(prog=f"ubmd {command.name}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("-h", "--help", action="store_true", help="this text, or what the keys and groups given are")
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination (a=1,2 b=x,y)")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"], help="print the configuration, run nothing")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: fill in the references")
    parser.add_argument("--info", choices=["defaults", "defaults-tree", "config", "searchpath", "plugins"])
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own configurations")
    return parser


def overview() -> str:
    """The text of ``ubmd --help``."""
    width = max(map(len, SUMMARIES))
    lines = [
        "ubmd: uncertainty-biased molecular dynamics and active learning of interatomic potentials",
        "",
        "usage: ubmd COMMAND [key=value ...]",
        "",
        "commands:",
        *(f"  {name:<{width}}  {summary}" for name, summary in SUMMARIES.items()),
        "",
        "ubmd COMMAND --help lists the configuration groups, their options and the keys of a command,",
        "ubmd COMMAND --help KEY explains one of them.",
        "ubmd --version prints the version.",
        'eval "$(ubmd -sc install=bash)" has bash complete commands, groups, options and keys by Tab.',
    ]
    return "\n".join(lines)


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"ubmd {__version__}")
        return 0
    if argv[0] in ("-sc", "--shell-completion"):
        from ubmd.cli.completion import shell_completion

        print(shell_completion(" ".join(argv[1:]), os.environ), end="")
        return 0
    if argv[0] == INIT:
        from ubmd.cli.init import init

        return init(argv[1:])
    if argv[0] == COMPARE:
        from ubmd.commands.compare import compare

        return compare(argv[1:])
    if argv[0] == FIGURES:
        from ubmd.commands.figures import figures

        return figures(argv[1:])
    if argv[0] == REPORT:
        from ubmd.commands.report import report

        return report(argv[1:])
    if argv[0] == CHECK:
        from ubmd.commands.check import check

        return check(argv[1:])
    command = find(argv[0])
    options = _parser(command).parse_intermixed_args(list(argv[1:]))
    options.overrides = quoted(earlier.translated(options.overrides))

    from ubmd.cli import app, command_help, key_help
    from ubmd.cli.continued import continued

    options.overrides = continued(command, options.overrides, multirun=options.multirun)
    with app.open_hydra(options.config_dir) as hydra:
        keys = [text for text in options.overrides if options.help and "=" not in text and text[:1] != "~"]
        if options.help:
            overrides = app.parse(hydra, [text for text in options.overrides if text not in keys])
            if keys:
                print(*key_help.key_help(hydra, command, overrides, keys), sep="\n\n")
            else:
                print(command_help.help_text(hydra, command, overrides, flags=_parser(command).format_help()))
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
