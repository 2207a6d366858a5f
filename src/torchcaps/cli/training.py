"""`torchcaps train | evaluate | inspect`: one run of a recipe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from torchcaps.cli.helping import HELP_ALL, short_help, wants_help
from torchcaps.config import Config, DataConfig, to_plain
from torchcaps.plugins import imported, own_files
from torchcaps.ranks import given_ranks
from torchcaps.shell import listed, show_option, typed
from torchcaps.terminal import note, say, say_lines
from torchcaps.usage import USER_ERRORS, usage_errors

if TYPE_CHECKING:
    from torchcaps.tables.budgets import Budget
    from torchcaps.train import Result, RunFolder


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    """What is trained, and how the command goes about it."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False  #: go on with the newest unfinished run of this recipe, seed and flags, or a shorter one
    dry_run: bool = False  #: say what is ahead, and stop there
    max_minutes: float | None = None  #: after which the run is saved and ends, as Ctrl-C would end it
    #: folder of a run, with whose weights this one begins where names and shapes agree
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    log: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ()  #: loggers that see each step and epoch


def train(
    recipe: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE")],
    flags: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FLAGS")] = (),
) -> None:
    """Train a recipe, and test it at the end. `torchcaps train RECIPE --help` lists its flags.

    Args:
        recipe: a name from `torchcaps list recipes`, such as digits or fm/table2/ours-cifar10
        flags: --budget full, fast, short, cpu or smoke, and what differs from it, e.g. --epochs 3 --model.options
            channels 64
    """
    from torchcaps.papers import create_recipe
    from torchcaps.tables.ahead import look_ahead
    from torchcaps.tables.fill import measure_ahead

    budget, others = take_budget(flags)
    base = create_recipe(recipe, budget)
    asked = read_flags(base, others, recipe)
    config, resume = finish(recipe, base, asked.config, given_fields(others)), asked.resume
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
            report(folder, str(stop) or type(stop).__name__)
        if not isinstance(stop, Interrupted):
            raise
        again = typed(["torchcaps", "train", recipe, *flags, *own_files(), *([] if resume else ["--resume"])])
        raise Interrupted(f"{stop}; to continue: {again}") from None
    if ranks is None or ranks.rank == 0:
        report(result.folder)
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


def given_fields(flags: Sequence[str]) -> frozenset[str]:
    """Return the names of the fields of a config that `flags` give, with dots and "_", such as "data.augment.flip"."""
    names = (flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--"))
    return frozenset(re.sub(r"(^|\.)no_", r"\1", name) for name in names)


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


def report(folder: Path, reason: str = "") -> None:
    """Write the report of a run, and of the `reason` why it ended early, where it did.

    What prevents that takes nothing from the run. It is said of a finished one; of others only the reason is said.
    """
    from torchcaps.report import write_report

    try:
        write_report(folder, reason)
    except Exception as error:
        if reason:
            return
        again = typed(["torchcaps", "inspect", str(folder), *own_files(), "--debug"])
        said = " ".join(str(error).split()) or type(error).__name__
        note(f"torchcaps: {folder} has no report ({said}); to see why: {again}")


def take_budget(flags: Sequence[str]) -> tuple[Budget | None, list[str]]:
    """Return the value of --budget among `flags`, None where it is not there, and the other flags.

    Raises:
        ValueError: where no value follows it.
    """
    for number, flag in enumerate(flags):
        name, joined, value = flag.partition("=")
        if name != "--budget":
            continue
        if not joined and number + 1 == len(flags):
            raise ValueError("--budget needs a value: full, fast, short, cpu or smoke")
        rest = number + (1 if joined else 2)
        return cast("Budget", value if joined else flags[number + 1]), [*flags[:number], *flags[rest:]]
    return None, list(flags)


def parse_flags(recipe: Config, flags: Sequence[str]) -> tuple[Config, bool]:
    """Return `recipe` with what `flags` say in its place, and whether to resume; see `read_flags`."""
    asked = read_flags(recipe, flags)
    return asked.config, asked.resume


def read_flags(recipe: Config, flags: Sequence[str], name: str = "") -> TrainFlags:
    """Return `recipe` with what `flags` say in its place, and what they say of the run.

    Options of the model add to the recipe's: tyro would make one fixed flag of each that the recipe has, and no other.
    Those of the recipe's model are dropped where the flags name another one, which may call other things by the same
    names; that is said.

    Args:
        recipe: whose values are the defaults.
        flags: as they were typed.
        name: what help and errors call the recipe; "" its own name.

    Raises:
        ValueError: for flags that are not there, and values that they do not take.
        SystemExit: when help was asked for, and has been printed.
    """
    if wants_help(flags):
        config, _ = parse_flags(recipe, [flag for flag in flags if flag not in ("-h", "--help")])
        say_lines(short_help(config, name or recipe.recipe))
        raise SystemExit(0)
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={}))
    with usage_errors():
        parsed = tyro.cli(
            TrainFlags,
            prog=f"torchcaps train {name or recipe.recipe}",
            description="Train this recipe with these values, which are defaults here, in place of its own.",
            default=TrainFlags(bare),
            args=["--help" if flag == HELP_ALL else flag for flag in flags],
        )
    for field in ("changed", "imports", "start", "continued"):
        if getattr(parsed.config, field) != getattr(bare, field):
            raise ValueError(f"--{field} is written by the command line itself: leave it out")
    kept, given = recipe.model.options, parsed.config.model
    if given.name != recipe.model.name and kept:
        from torchcaps.models.registry import find_factory

        find_factory(given.name)  # an unknown name is said first
        said = ", ".join(f"{name} {show_option(value)}" for name, value in kept.items())
        note(f"torchcaps: options of {recipe.model.name} that {given.name} is not given: {said}")
        kept = {}
    model = dataclasses.replace(given, options=kept | listed(given.options))
    config = dataclasses.replace(parsed.config, model=model)
    config = dataclasses.replace(config, imports=imported(), changed=tuple(describe_changes(recipe, config)))
    return dataclasses.replace(parsed, config=config)


def describe_changes(recipe: Config, config: Config) -> list[str]:
    """Return what of `config` another run would not get from `recipe`: NAME=VALUE, without seeds and places."""
    places = {"changed", "imports", "out", "checkpoint_every", "device", "processes", "seed"}
    places |= {"data.root", "data.download", "continued", "test_curve"}
    before, after = dict(_leaves(to_plain(recipe))), dict(_leaves(to_plain(config)))
    return [
        f"{name}={_show(name, after.get(name))}"
        for name in sorted({*before, *after} - places)
        if before.get(name) != after.get(name)
    ]


def _show(name: str, value: Any) -> str:
    """Return a value as it is typed; the flags of lists but those of models take words."""
    if isinstance(value, list) and not name.startswith("model.options."):
        return ",".join(map(str, value))
    return show_option(value)


def _leaves(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


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


@dataclasses.dataclass(frozen=True)
class EvaluateFlags:
    """What is measured, and how it is said."""

    data: DataConfig  #: other data than the run's: its classes are matched by name
    #: the images to measure on; else test, and of other data without a test split of their own all
    split: Literal["test", "validation", "train", "all"] | None = None
    device: str = "auto"  #: auto, cpu, cuda, mps
    json: bool = False  #: print one JSON object, with accuracy by class, confusion, top-k and calibration
    out: Path | None = None  #: folder to write the same to, as JSON and CSV


def evaluate(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    flags: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FLAGS")] = (),
) -> None:
    """Measure the model that a run selected. `torchcaps evaluate RUN --help` lists the flags.

    Args:
        run: the folder of a run
        flags: e.g. --split validation, --json, or other data: --data.name folder:PATH
    """
    from torchcaps.train import RunFolder

    data = dataclasses.replace(RunFolder(Path(run)).read_config().data, download=False)  # unless a flag says so
    with usage_errors():
        asked = tyro.cli(
            EvaluateFlags,
            prog=f"torchcaps evaluate {run}",
            description="Measure the model that this run selected; the values of its data are defaults here.",
            default=EvaluateFlags(data),
            args=flags,
        )
    from torchcaps.inspect.evaluation import evaluate_run, leave_shares

    if asked.data.name != data.name:
        asked = dataclasses.replace(asked, data=leave_shares(asked.data, given_fields(flags)))
    found = evaluate_run(run, asked.data, asked.split, asked.device)
    if found.of_run is False and asked.data.name == data.name:
        why = "they were changed since" + ("" if asked.data == data else ", or these flags choose others")
        note(f"torchcaps: the {found.split} images are not those of the run: {why}")
    score = found.score
    if asked.json:
        say(dumps(found.describe()))
    else:
        said = f"accuracy {score.accuracy:.2%}, {score.errors} errors of {score.images}, loss {score.loss:.4f}"
        say(f"{found.split}: {said}")
    if asked.out is not None:
        for path in found.write(asked.out):
            note(str(path))


def inspect(run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")], out: Path | None = None) -> None:
    """Write the report of a run anew, finished or not: report.html, figures/ and tables in its folder.

    Where its data are gone, a report that shows what the model does with them stays as it is.

    Args:
        run: the folder of a run
        out: folder that the report is written to; else that of the run
    """
    from torchcaps.report import write_report
    from torchcaps.report.report import ReportKept

    try:
        say(str(write_report(run, out=out)))
    except ReportKept as kept:
        note(f"torchcaps: {kept}")
        say(str(kept.page))
