"""Which folder a run is written to: a fresh one, or that of a run that goes on, and whether it can.

A run goes on in its own folder where it was cut, and in a fresh one, from the end of a finished run of fewer epochs,
where more are asked for.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torchcaps.config import PLACES, Config, to_plain
from torchcaps.files import digest
from torchcaps.forms import SPLITS
from torchcaps.manifest import DIGESTS, Manifest
from torchcaps.terminal import warn
from torchcaps.train.check import check_out
from torchcaps.train.checkpoint import MODEL, STATE, check_whole, copy_checkpoint, load_state, present
from torchcaps.train.run import RunFolder

# May differ between a run and its continuation: the result does not depend on them.
_FREE = (*PLACES, "continued")


def open_folder(config: Config, resume: bool) -> RunFolder:
    """Return the folder that a run of `config` is written to; with `resume` that of one that goes on.

    That is the newest unfinished run of the config; else a fresh folder that begins where a finished run of fewer
    epochs, and otherwise of the config, has ended. The finished one stays as it is.

    Raises:
        ValueError: when `config.out` cannot be written to, and when there is nothing to resume.
    """
    if not resume:
        return create_run(config)
    try:
        return find_unfinished(config)
    except ValueError:
        shorter = find_shorter(config)
        if shorter is None:
            raise
        return _extend(shorter, config)


def check_images(run: RunFolder, now: Manifest) -> None:
    """Raise ValueError where images and classes are no longer those that `run` has begun with, as far as it says.

    `now` is what the run would say of them today.
    """
    if not (run.path / "model.json").exists():
        return
    before = run.read_manifest()
    if before.classes and before.classes != now.classes:  # an older run does not name them
        raise ValueError(
            f"cannot resume {run.path}: its classes were {', '.join(before.classes)}, and are {', '.join(now.classes)}"
        )
    for split in SPLITS if DIGESTS not in before.missing else ():
        began, found = getattr(before.data, split), getattr(now.data, split)
        if not found.goes_on(began):
            what = "are in another order than when it began" if found == began else "were changed since it began"
            raise ValueError(
                f"cannot resume {run.path}: its {split} images {what}; put them back, or begin a new run without "
                "--resume"
            )


def find_shorter(config: Config) -> RunFolder | None:
    """Return the newest finished run of `config`, but for fewer epochs, that can go on; None where there is none."""
    for run in reversed(runs_of(config)):
        if run.finished and not differences(run.read_config(), config):
            return None  # that is done
        if not run.finished or not (folder := present(run.last)) or not (folder / STATE).exists():
            continue
        there = run.read_config()
        if there.epochs < config.epochs and not differences(there, replace(config, epochs=there.epochs)):
            run.check_revisions()
            return run
    return None


def _extend(shorter: RunFolder, config: Config) -> RunFolder:
    """Return a fresh folder of `config`, with the checkpoints of `shorter`."""
    epochs, state = shorter.read_config().epochs, load_state(shorter.last)
    weights = present(shorter.last)
    assert weights is not None
    check_whole(weights / MODEL)
    name = f"{shorter.path.resolve().name} {epochs} {digest(weights / MODEL)}"

    def fill(run: RunFolder) -> None:
        for file in ("environment.json", "model.json"):  # as many threads end in the same bits; the images are compared
            run.write(file, shorter.read(file))
        copy_checkpoint(run.last, weights / MODEL, state | {"epochs": epochs})
        if best := present(shorter.best):
            copy_checkpoint(run.best, best / MODEL)

    run = create_run(replace(config, continued=name), fill)
    warn(
        f"{config.recipe or config.model.name} goes on in {run.path} from the end of {shorter.path}, {epochs} epochs; "
        f"the rate goes on as in a run of {config.epochs}"
    )
    return run


def _candidates(config: Config) -> itertools.chain[Path]:
    """Return the names that the folder of such a run may have, in the order in which they are taken."""
    name = f"{config.recipe or config.model.name}-{config.seed}"
    return itertools.chain([config.out / name], (config.out / f"{name}-{number}" for number in itertools.count(2)))


def create_run(config: Config, fill: Callable[[RunFolder], object] = lambda run: None) -> RunFolder:
    """Make a fresh folder for a run of `config`, have `fill` write what it begins with, and write the config to it.

    The config is last: without it a folder is no run, so that what is cut before is none.

    Raises:
        ValueError: when `config.out` cannot be written to.
    """
    check_out(config.out)
    for path in _candidates(config):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"cannot make {path} ({reason}): give another folder with --out") from error
        run = RunFolder(path)
        try:
            fill(run)
            run.write("config.json", to_plain(config))
        except BaseException:
            run.remove()
            raise
        return run
    raise AssertionError("the candidates never end")


def runs_of(config: Config) -> list[RunFolder]:
    """Return the folders of the same recipe and seed, oldest first."""
    first = next(_candidates(config))
    numbers = {1: first} if first.exists() else {}  # a folder in between may have been removed
    for path in config.out.glob(f"{glob.escape(first.name)}-*"):
        number = path.name.removeprefix(f"{first.name}-")
        if number.isdecimal() and number == str(int(number)) and int(number) > 1:
            numbers[int(number)] = path
    folders = [RunFolder(numbers[number]) for number in sorted(numbers)]
    return [run for run in folders if (run.path / "config.json").exists()]


def unfinished_runs(config: Config) -> list[RunFolder]:
    """Return the folders of the same recipe and seed that hold no result yet, oldest first."""
    return [run for run in runs_of(config) if not run.finished]


def find_unfinished(config: Config) -> RunFolder:
    """Return the newest unfinished run of exactly `config`, but for what the result does not depend on (`_FREE`).

    Raises:
        ValueError: when there is none, naming what differs in the newest unfinished run of the recipe and seed.
    """
    runs = unfinished_runs(config)
    for run in reversed(runs):
        if not differences(run.read_config(), config):
            run.check_revisions()
            return run
    if not runs:
        raise ValueError(
            f"nothing to resume: {next(_candidates(config))} does not exist or is finished; a finished run goes on "
            "where --epochs says more"
        )
    found = differences(runs[-1].read_config(), config)
    raise ValueError(f"cannot resume {runs[-1].path}, which was started with other values: {'; '.join(found)}")


def differences(there: Config, asked: Config) -> list[str]:
    """Return what the config of a run and one that is asked for do not share, of what must be equal to go on with
    it.
    """
    return _differences(to_plain(there), to_plain(asked))


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Return descriptions of the values that two plain configs do not share."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before != after and prefix + name not in _FREE:
            found.append(f"{prefix}{name} was {before!r}, not {after!r}")
    return found
