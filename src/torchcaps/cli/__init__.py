"""The command line: `torchcaps train`, `evaluate`, `predict` and the other `COMMANDS`.

Flags are derived from `Config` and from the functions of the modules beside this one. Help and the listings of recipes,
tables and data import no torch: what needs it is imported by the command that needs it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from torchcaps.cli.comparing import compare
from torchcaps.cli.costs import cost
from torchcaps.cli.datasets import data
from torchcaps.cli.exporting import export
from torchcaps.cli.listing import list_names
from torchcaps.cli.predicting import predict
from torchcaps.cli.smaller import fold, prune
from torchcaps.cli.tables import reproduce, table
from torchcaps.cli.training import evaluate, inspect, parse_flags, train
from torchcaps.names import unknown
from torchcaps.usage import INTERRUPTED, bind, describe

__all__ = ["main", "parse_flags"]

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect,
    "reproduce": reproduce,
    "table": table,
    "compare": compare,
    "export": export,
    "prune": prune,
    "fold": fold,
    "list": list_names,
    "cost": cost,
    "data": data,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what the user can put right, 1 for other faults."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        dispatch(args)
        return 0
    except SystemExit:  # tyro has printed help
        return 0
    except KeyboardInterrupt as stop:
        print(f"torchcaps: {stop or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, status = describe(error, debug)
        print(f"torchcaps: error: {message}", file=sys.stderr)
        return status


def dispatch(args: Sequence[str]) -> None:
    """Run the command that `args` begin with; `train`, `evaluate` and `data` have a word more before their flags."""
    if args[:1] == ["train"] and len(args) > 1 and not args[1].startswith("-"):
        return train(args[1], tuple(args[2:]))
    if args[:1] == ["evaluate"] and len(args) > 1 and not args[1].startswith("-"):
        return evaluate(Path(args[1]), tuple(args[2:]))
    if args[:1] == ["data"] and args[1:2] in (["list"], ["show"]):
        return data(cast(Literal["list", "show"], args[1]), tuple(args[2:]))
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        raise unknown("command", args[0], COMMANDS)
    bind(
        COMMANDS,
        args,
        prog="torchcaps",
        description="Capsule networks in PyTorch. Every command takes --debug, which shows where an error came from.",
    )()
