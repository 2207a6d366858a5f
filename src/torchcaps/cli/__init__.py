"""The command line: `torchcaps train`, `evaluate`, `predict` and the other `COMMANDS`.

Flags are derived from `Config` and from the functions of the modules beside this one. Help and the listings of recipes,
tables and data import no torch: what needs it is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, cast

from torchcaps import __version__
from torchcaps.cli.comparing import compare, rename_flags
from torchcaps.cli.costs import cost
from torchcaps.cli.datasets import data
from torchcaps.cli.evaluating import evaluate, inspect
from torchcaps.cli.examining import examine
from torchcaps.cli.exploring import explore
from torchcaps.cli.exporting import export
from torchcaps.cli.flags import given_fields, parse_flags
from torchcaps.cli.listing import list_names
from torchcaps.cli.predicting import predict
from torchcaps.cli.publishing import publish
from torchcaps.cli.runs import runs
from torchcaps.cli.smaller import fold, prune
from torchcaps.cli.tables import check_reproduce, reproduce, table
from torchcaps.cli.training import train
from torchcaps.cli.warming import warm
from torchcaps.names import unknown
from torchcaps.plugins import import_file
from torchcaps.ranks import given_ranks
from torchcaps.terminal import note, say
from torchcaps.usage import FAULT, INTERRUPTED, bind, describe

__all__ = ["main", "parse_flags"]

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect,
    "runs": runs,
    "examine": examine,
    "explore": explore,
    "reproduce": reproduce,
    "table": table,
    "compare": compare,
    "export": export,
    "publish": publish,
    "prune": prune,
    "fold": fold,
    "list": list_names,
    "cost": cost,
    "warm": warm,
    "data": data,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what the user can put right, 1 for other faults."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # not every terminal can show every name
    try:
        status = _run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        return _leave_pipe(error, debug)
    except KeyboardInterrupt as stop:
        note(f"torchcaps: {stop or 'interrupted'}")
        return INTERRUPTED
    except Exception as error:
        return _say_error(error, debug)


def _run(args: Sequence[str]) -> int:
    """Run the command; returns 0, or what code of the user's own ends it with."""
    try:
        with quiet():
            dispatch(take_imports(args))
    except SystemExit as stop:  # 0 of tyro, which has printed help
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        note(f"torchcaps: {stop.code}")
        return FAULT
    return 0


@contextmanager
def quiet() -> Iterator[None]:
    """Let the first of processes that were started together speak for all; their errors are said behind this."""
    ranks = given_ranks()
    if ranks is None or ranks.rank == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _say_error(error: Exception, debug: bool) -> int:
    """Say what is wrong in one line; returns the exit status."""
    if debug:
        traceback.print_exc()
    message, status = describe(error, debug)
    note(f"torchcaps: error: {message}")
    return status


def _leave_pipe(error: BrokenPipeError, debug: bool) -> int:
    """End quietly where whoever read the output, such as `head`, has seen enough; other pipes are faults."""
    try:
        print(flush=True)  # what was flushed in vain is forgotten, and says nothing a second time
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python itself flushes at the end
        return 0
    return _say_error(error, debug)


def take_imports(args: Sequence[str]) -> list[str]:
    """Return `args` without each --import FILE, whose file is imported.

    Raises:
        FileNotFoundError, ValueError: where it cannot be, and for --import without a file.
    """
    rest, words = [], iter(args)
    for word in words:
        flag, joined, value = word.partition("=")
        if flag != "--import":
            rest.append(word)
            continue
        path = value if joined else next(words, None)
        if not path:
            raise ValueError("--import needs a Python file")
        import_file(path)
    return rest


def _brief(run: Callable[..., None]) -> Callable[[], None]:
    """Return a command that says what `run` is for in its first paragraph, as a list of all has room for."""

    def named() -> None: ...

    named.__doc__ = (run.__doc__ or "").partition("\n\n")[0]
    return named


def dispatch(args: Sequence[str]) -> None:
    """Run the command that `args` begin with; `train`, `evaluate` and `data` have a word more before their flags."""
    if args[:1] == ["train"] and len(args) > 1 and not args[1].startswith("-"):
        return train(args[1], tuple(args[2:]))
    if args[:1] == ["evaluate"] and len(args) > 1 and not args[1].startswith("-"):
        return evaluate(Path(args[1]), tuple(args[2:]))
    if args[:1] == ["data"] and args[1:2] in (["list"], ["show"]):
        return data(cast(Literal["list", "show"], args[1]), tuple(args[2:]))
    if args[:1] == ["--version"]:
        return say(f"torchcaps {__version__}")
    if args[:1] in (["train"], ["evaluate"]) and args[1:] and args[1] not in ("-h", "--help"):
        first = "RECIPE" if args[0] == "train" else "RUN"
        raise ValueError(f"{args[0]} takes {first} before its flags: torchcaps {args[0]} {first} {args[1]} ...")
    given: dict[str, tuple[str, ...]] = {}
    if args[:1] == ["reproduce"]:
        check_reproduce(args[1:])
    if args[:1] == ["compare"]:
        args = rename_flags(args)
        given = {"given": tuple(sorted(given_fields(args)))}
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        raise unknown("command", args[0], COMMANDS)
    bind(
        COMMANDS if args and args[0] in COMMANDS else {name: _brief(run) for name, run in COMMANDS.items()},
        args,
        prog="torchcaps",
        description="Capsule networks in PyTorch. Every command takes --debug, which shows where an error came from, "
        "and --import FILE, which runs a Python file that registers a routing or a model of your own; --version says "
        "which version this is.",
    )(**given)
