"""The command line: `torchcaps train | evaluate | inspect | list | cost | data`.

Flags are derived from `Config` and from the functions below. Help and the listings of recipes and data import no torch:
what needs it is imported by the command that needs it.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from torchcaps.config import Config, DataConfig, Option
from torchcaps.names import unknown
from torchcaps.usage import INTERRUPTED, USER_ERRORS, bind, describe, usage_errors

if TYPE_CHECKING:
    from torchcaps.train import Result, RunFolder

DEFAULT_DATA = DataConfig()


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False  #: continue the newest unfinished run of this recipe, seed and flags


def train(
    recipe: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE")],
    flags: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FLAGS")] = (),
) -> None:
    """Train a recipe, select on its validation split, test once. `torchcaps train RECIPE --help` lists its flags.

    Args:
        recipe: a name from `torchcaps list recipes`
        flags: what differs from the recipe, e.g. --epochs 3 --model.options channels 64
    """
    from torchcaps.recipes import create_recipe

    config, resume = parse_flags(create_recipe(recipe), flags)
    from torchcaps.train import Interrupted, fit, unfinished_runs

    before = unfinished_runs(config)
    left = [] if resume else [run for run in before if not run.in_use]
    if left:
        print(
            f"torchcaps: {left[-1].path} is unfinished; the same command with --resume continues it; starting afresh",
            file=sys.stderr,
        )
    try:
        result = fit(config, resume)
    except (Exception, Interrupted) as stop:
        if not isinstance(stop, USER_ERRORS) and (folder := ended_early(config, resume, before)):
            report(folder, str(stop) or type(stop).__name__)
        if not isinstance(stop, Interrupted):
            raise
        again = shlex.join(["torchcaps", "train", recipe, *flags, *([] if resume else ["--resume"])])
        raise Interrupted(f"{stop}; to continue: {again}") from None
    report(result.folder)
    print_result(result)


def ended_early(config: Config, resume: bool, before: Sequence[RunFolder]) -> Path | None:
    """The folder of a run of `config` that has just ended without a result; `before` were there when it began."""
    from torchcaps.train import unfinished_runs
    from torchcaps.train.run import find_unfinished

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
    from torchcaps.inspect import write_report

    try:
        write_report(folder, reason)
    except Exception as error:
        if reason:
            return
        again = shlex.join(["torchcaps", "inspect", str(folder), "--debug"])
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"torchcaps: {folder} has no report ({said}); to see why: {again}", file=sys.stderr)


def parse_flags(recipe: Config, flags: Sequence[str]) -> tuple[Config, bool]:
    """`recipe` with what `flags` say in its place, and whether to resume.

    Options of the model add to the recipe's: tyro would make one fixed flag of each that the recipe has, and no other.
    """
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={}))
    with usage_errors():
        parsed = tyro.cli(
            TrainFlags,
            prog=f"torchcaps train {recipe.recipe}",
            description="Train this recipe with these values, which are defaults here, in place of its own.",
            default=TrainFlags(bare),
            args=flags,
        )
    options = recipe.model.options | parsed.config.model.options
    model = dataclasses.replace(parsed.config.model, options=options)
    return dataclasses.replace(parsed.config, model=model), parsed.resume


def print_result(result: Result) -> None:
    """A table of what came out, and the folder that holds it."""
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
    console.print(str(result.folder), markup=False)


def evaluate(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    split: Literal["test", "validation"] = "test",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measure the model that a run selected.

    Args:
        run: the folder of a run
        split: the images to measure on
        device: auto, cpu, cuda, mps
        json: print one JSON object
    """
    from torchcaps.data import load_data
    from torchcaps.losses import build_criterion
    from torchcaps.train import evaluate, load_run
    from torchcaps.train.evaluate import check_data
    from torchcaps.train.machine import build_fabric

    model, config = load_run(run)
    fabric = build_fabric(dataclasses.replace(config, device=device, processes=1))
    data = load_data(config.data, fabric.device)
    check_data(run, data)
    if split == "validation" and not len(data.validation):
        raise ValueError(f"{run} held out no validation images (data.validation {config.data.validation})")
    batches = data.evaluation(split, config.batch_size)
    criterion, threshold = build_criterion(config.loss), config.loss.threshold
    score = evaluate(fabric, fabric.to_device(model), batches, criterion, data.num_classes, threshold)
    record = {"split": split, "accuracy": score.accuracy, **score._asdict()}
    if json:
        print(dumps(record))
    else:
        print(f"{split}: accuracy {score.accuracy:.2%}, {score.errors} errors of {score.images}, loss {score.loss:.4f}")


def inspect(run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]) -> None:
    """Write the report of a run anew, finished or not: report.html and figures/ in its folder.

    Args:
        run: the folder of a run
    """
    from torchcaps.inspect import write_report

    print(write_report(run))


def list_names(kind: Positional[Literal["models", "recipes", "routings", "data"]]) -> None:
    """List what there is, one name a line.

    Args:
        kind: of what
    """
    match kind:
        case "models":
            from torchcaps.models import list_models

            print_lines((name, "") for name in list_models())
        case "recipes":
            from torchcaps.recipes import list_recipes

            print_lines(list_recipes().items())
        case "routings":
            from torchcaps.routing.listing import HEADER, routing_rows

            print_columns([HEADER, *routing_rows()])
        case "data":
            from torchcaps.data.catalogue import CATALOGUE

            print_lines((name, f"{entry.about}: {entry.facts()}") for name, entry in CATALOGUE.items())


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows of equally many cells, aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_lines(rows: Iterable[tuple[str, str]]) -> None:
    """Names, and what is said of each, in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        print(f"{name:<{width}}  {about}".rstrip())


def cost(
    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")],
    image_size: int = 28,
    channels: int = 1,
    classes: int = 10,
    options: dict[str, Option] | None = None,
    json: bool = False,
) -> None:
    """Count the parameters, multiply-adds and memory of a model.

    Args:
        model: a name from `torchcaps list models`
        image_size: side in pixels
        channels: channels of the images
        classes: number of classes
        options: keyword arguments of the model's family, e.g. channels 64
        json: print one JSON object
    """
    from torchcaps.cost import measure_cost
    from torchcaps.models import create_model

    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be at least 1 pixel")
    built = create_model(model, num_classes=classes, in_channels=channels, image_size=image_size, **(options or {}))
    measured = dataclasses.asdict(measure_cost(built, image_size, channels))
    if json:
        print(dumps(measured))
    else:
        print_lines((name.replace("_", " "), f"{value:>16,}") for name, value in measured.items())


def data_list(root: Path | None = None, json: bool = False) -> None:
    """What each data set is, its licence and size, where it is looked for, and whether it is there.

    Args:
        root: folder of the data sets; else $TORCHCAPS_DATA, else the user's cache folder
        json: print one JSON array
    """
    from torchcaps.data.catalogue import data_root
    from torchcaps.data.listing import list_sets

    listings = list_sets(data_root(root))
    if json:
        print(dumps([dataclasses.asdict(listing) for listing in listings]))
    else:
        print("\n".join(line for listing in listings for line in listing.lines()))


def data_show(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")],
    data: DataConfig = DEFAULT_DATA,
    images: int = 10,
    out: Path = Path("sheets"),
) -> None:
    """Write a contact sheet of a data set: images with labels, before and after random changes, as PNG and HTML.

    Args:
        name: a name from `torchcaps data list`
        data: how it is read, and what changes are shown; without any, a few that suit the set
        images: in a row
        out: folder that the two files are written to
    """
    from torchcaps.data.show import write_sheet

    if images < 1:
        raise ValueError(f"images is {images}; it must be at least 1")
    for path in write_sheet(dataclasses.replace(data, name=name), out, images):
        print(path)


DATA_COMMANDS = {"list": data_list, "show": data_show}


def data(
    command: Annotated[Positional[Literal["list", "show"]], tyro.conf.arg(metavar="list|show")],
    flags: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FLAGS")] = (),
) -> None:
    """List the data sets, or write a contact sheet of one. `torchcaps data show --help` lists its flags.

    Args:
        command: what to do
        flags: of that command
    """
    bind(DATA_COMMANDS, (command, *flags), prog="torchcaps data")()


COMMANDS = {"train": train, "evaluate": evaluate, "inspect": inspect, "list": list_names, "cost": cost, "data": data}


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
    """Run the command that `args` begin with; those of `train` and `data` have further words before their flags."""
    if args[:1] == ["train"] and len(args) > 1 and not args[1].startswith("-"):
        return train(args[1], tuple(args[2:]))
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
