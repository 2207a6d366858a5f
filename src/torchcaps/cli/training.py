"""`torchcaps train`: one run of a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from torchcaps.cli import reporting
from torchcaps.cli.flags import given_fields, read_flags, take_budget
from torchcaps.config import Config
from torchcaps.plugins import own_files
from torchcaps.ranks import given_ranks
from torchcaps.shell import typed
from torchcaps.terminal import note, say, say_lines
from torchcaps.usage import USER_ERRORS

if TYPE_CHECKING:
    from torchcaps.train import Result, RunFolder


def train(
    recipe: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE")],
    flags: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FLAGS")] = (),
) -> None:
    """Train a recipe, and test it at the end. `torchcaps train RECIPE --help` lists its flags.

    For example: `torchcaps train classify --data.name folder:pictures --epochs 20`.

    Args:
        recipe: a name from `torchcaps list recipes`, such as digits or fm/table2/ours-cifar10
        flags: --budget full, fast, short, cpu or smoke, and what differs from it, e.g. --epochs 3 --model.options
            channels 64
    """
    from torchcaps.papers import create_recipe
    from torchcaps.tables.ahead import look_ahead
    from torchcaps.tables.budgets import fields_of
    from torchcaps.tables.fill import measure_ahead

    budget, others = take_budget(flags)
    base = create_recipe(recipe, budget)
    asked = read_flags(base, others, recipe)
    given = given_fields(others) | fields_of(budget)
    config, resume = finish(recipe, base, asked.config, given), asked.resume
    if asked.from_ is not None:
        from torchcaps.train.start import find_start

        config = dataclasses.replace(config, start=find_start(asked.from_).record)
        config = dataclasses.replace(config, changed=(*config.changed, f"start={config.start}"))
    if asked.dry_run:
        say_lines(str(look_ahead(config)))
        return
    from torchcaps.inspect import find_probes
    from torchcaps.train import Interrupted, fit, unfinished_runs
    from torchcaps.train.callbacks import SayAhead

    before = unfinished_runs(config)
    if not resume:
        hint(config)
    callbacks, ranks = [*find_probes(config)], given_ranks()
    if not resume and config.processes == 1 and ranks is None and (ahead := measure_ahead(config)) is not None:
        callbacks.append(SayAhead(f"torchcaps: ahead: {ahead}"))
    try:
        result = fit(config, resume, callbacks, asked.max_minutes, start=asked.from_, loggers=asked.log)
    except (Exception, Interrupted) as stop:
        first = ranks is None or ranks.rank == 0
        if first and not isinstance(stop, USER_ERRORS) and (folder := ended_early(config, resume, before)):
            reporting.report(folder, str(stop) or type(stop).__name__)
        if not isinstance(stop, Interrupted):
            raise
        again = typed(["torchcaps", "train", recipe, *flags, *own_files(), *([] if resume else ["--resume"])])
        raise Interrupted(f"{stop}; to continue: {again}") from None
    if ranks is None or ranks.rank == 0:
        reporting.report(result.folder)
        print_result(result)


def hint(config: Config) -> None:
    """Say that there is a run of `config`, unfinished or of fewer epochs, which --resume would continue."""
    from torchcaps.train.resuming import find_shorter, find_unfinished

    run = None
    with suppress(ValueError):
        run = find_unfinished(config)
    with suppress(ValueError):
        run = run or find_shorter(config)
    if run is not None and not run.in_use:
        how = f"ended after {run.read_config().epochs} epochs" if run.finished else "is unfinished"
        note(f"torchcaps: {run.path} {how}; the same command with --resume continues it; starting afresh")


def finish(recipe: str, base: Config, config: Config, given: frozenset[str]) -> Config:
    """Return `config`, which flags made of `base`, with what follows from its model and data; what is chosen is said.

    Raises:
        ValueError: for a loss by a flag that contradicts what the model's scores are.
    """
    from torchcaps.papers import finish_recipe
    from torchcaps.papers.fitting import follow_model

    config, chosen = finish_recipe(recipe, config, given)
    config, said = follow_model(base, config, given)
    for line in [*filter(None, [chosen]), *said]:
        note(f"torchcaps: {line}")
    return config


def ended_early(config: Config, resume: bool, before: Sequence[RunFolder]) -> Path | None:
    """Return the folder of a run of `config` that has just ended without a result; `before` were there when it
    began.
    """
    from torchcaps.train import unfinished_runs
    from torchcaps.train.resuming import find_unfinished

    if resume:
        try:
            run = find_unfinished(config)
        except ValueError:  # there was nothing to resume
            return None
        return None if run.in_use else run.path
    return next((run.path for run in unfinished_runs(config) if run not in before and not run.in_use), None)


def print_result(result: Result) -> None:
    """Print a table of what came out, and the folder that holds it."""
    table = Table(show_header=False)
    table.add_row("test accuracy", f"{result.test_accuracy:.2%}")
    table.add_row("test errors", f"{result.test_errors} of {result.test_images}")
    if result.validation_accuracy is not None:
        table.add_row("validation accuracy", f"{result.validation_accuracy:.2%}")
    table.add_row("selected epoch", str(result.selected_epoch))
    table.add_row("parameters", f"{result.parameters:,}")
    table.add_row("time", f"{result.seconds:.1f} s")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    say(str(result.folder))
