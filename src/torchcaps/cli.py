"""The command line: `torchcaps train | evaluate | list | cost`.

Flags are derived from `Config` and from the functions below. Help and the listings of recipes and data import no torch:
what needs it is imported by the command that needs it.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Iterable, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from torchcaps.config import Config, Option

if TYPE_CHECKING:
    from torchcaps.train import Result

USER_ERROR, FAULT, INTERRUPTED = 2, 1, 130


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
    from torchcaps.train import fit, unfinished_runs

    left = unfinished_runs(config)
    if left and not resume:
        print(
            f"torchcaps: {left[-1].path} is unfinished; the same command with --resume continues it; starting afresh",
            file=sys.stderr,
        )
    print_result(fit(config, resume))


def parse_flags(recipe: Config, flags: Sequence[str]) -> tuple[Config, bool]:
    """`recipe` with what `flags` say in its place, and whether to resume.

    Options of the model add to the recipe's: tyro would make one fixed flag of each that the recipe has, and no other.
    """
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={}))
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
    from torchcaps.train.machine import build_fabric

    model, config = load_run(run)
    fabric = build_fabric(dataclasses.replace(config, device=device, processes=1))
    data = load_data(config.data, fabric.device)
    if split == "validation" and not len(data.validation):
        raise ValueError(f"{run} held out no validation images (data.validation {config.data.validation})")
    batches = data.evaluation(split, config.batch_size)
    score = evaluate(fabric, fabric.to_device(model), batches, build_criterion(config.loss), data.num_classes)
    record = {"split": split, "accuracy": score.accuracy, **score._asdict()}
    if json:
        print(dumps(record))
    else:
        print(f"{split}: accuracy {score.accuracy:.2%}, {score.errors} errors of {score.images}, loss {score.loss:.4f}")


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
            from torchcaps.routing import list_routings

            print_lines((getattr(spec, "name", str(spec)), getattr(spec, "paper", "")) for spec in list_routings())
        case "data":
            from torchcaps.data.catalogue import CATALOGUE

            print_lines((name, f"{entry.about}: {entry.facts()}") for name, entry in CATALOGUE.items())


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


COMMANDS = {"train": train, "evaluate": evaluate, "list": list_names, "cost": cost}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what the user can put right, 1 for other faults."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        dispatch(args)
        return 0
    except SystemExit as stop:  # tyro has printed help (0) or what is wrong with the flags (2)
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except KeyboardInterrupt:
        print("torchcaps: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        user = isinstance(error, ValueError | FileNotFoundError)
        message = " ".join(str(error).split()) or type(error).__name__
        hint = "" if user or debug else f" ({type(error).__name__}; --debug shows where)"
        print(f"torchcaps: error: {message}{hint}", file=sys.stderr)
        return USER_ERROR if user else FAULT


def dispatch(args: Sequence[str]) -> None:
    """Run the command that `args` begin with; the flags of `train` depend on its recipe, so that comes first."""
    if args[:1] == ["train"] and len(args) > 1 and not args[1].startswith("-"):
        return train(args[1], tuple(args[2:]))
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="torchcaps",
        description="Capsule networks in PyTorch. Every command takes --debug, which shows where an error came from.",
        args=args,
    )
