"""Filling cells: what is planned for them is run once, however often it is asked for or cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torchcaps import terminal
from torchcaps.config import Config
from torchcaps.data.facts import missing_data
from torchcaps.locking import hold
from torchcaps.revisions import revisions_of
from torchcaps.tables.ahead import WITHOUT, Ahead, look_ahead
from torchcaps.tables.budget_names import COUNT, FULL, SMOKE
from torchcaps.tables.budgets import apply_budget, width
from torchcaps.tables.cells import Count, Train
from torchcaps.tables.lines import CLAIMS
from torchcaps.tables.measure import peak_memory, reset_peak
from torchcaps.tables.plan import Job
from torchcaps.tables.records import (
    append_record,
    config_hash,
    count_hash,
    describe_run,
    find_finished,
    find_run,
    read_records,
)
from torchcaps.terminal import show_time


@dataclass(frozen=True)
class Settings:
    """How cells are filled; the results do not depend on it."""

    records: Path  # the file of the lines
    out: Path = Path("runs")  # folder of the runs' folders
    device: str = "auto"
    root: Path | None = None  # of the data sets
    hours: float | None = None  # after which no further run is begun
    say: Callable[[str], None] = terminal.say
    finish: Callable[[Path], None] = lambda folder: None  # called with the folder of each run that ends, but smoke


class Outcome(NamedTuple):
    """What came of jobs."""

    left: int  # that have no line
    untrained: tuple[str, ...] = ()  # labels of those of them that were tried in vain

    def check(self) -> None:
        """Raise ValueError where a job was tried in vain, so that nobody takes the rest for all."""
        if self.untrained:
            raise ValueError(
                f"{len(self.untrained)} of the runs could not be trained, for what was said of each: "
                f"{', '.join(self.untrained)}"
            )


def run_all(jobs: Sequence[Job], settings: Settings) -> Outcome:
    """Do the jobs in turn, but for those that are done; returns how many are left, and which were tried in vain.

    Those are jobs that do not fit into memory, and whose run is trained by a process that will write no line of it, as
    `torchcaps train` is. That is said, and the next one is done.

    Raises:
        ValueError, OSError, ...: as `fit`, whose run failed for a reason that others would share.
        Interrupted: when a signal asked for it, and the run is saved.
    """
    from torchcaps.train import InUse

    deadline = None if settings.hours is None else time.monotonic() + 3600 * settings.hours
    left, untrained = 0, []
    for number, job in enumerate(jobs):
        if deadline is not None and time.monotonic() >= deadline:
            left += len(jobs) - number
            settings.say(f"{settings.hours:g} h are over: {len(jobs) - number} of {len(jobs)} runs were not looked at")
            break
        try:
            left += not do(job, settings)
        except (InUse, MemoryError) as error:
            left += 1
            untrained.append(job.label)
            settings.say(f"{job.label}: {str(error) or type(error).__name__}")
    return Outcome(left, tuple(untrained))


def say_ahead(jobs: Sequence[Job], settings: Settings) -> float:
    """Say of each job that is not done what it will take here, and return the seconds of those that can be measured.

    Nothing is trained and nothing is written. Runs of one network and data are measured once. What an unfinished run
    has behind it counts as ahead.
    """
    records, total = read_records(settings.records), 0.0
    seen: dict[tuple[str, str], Ahead | None] = {}
    for job in jobs:
        if job.budget == COUNT or find_run(records, job.config, job.budget):
            continue
        if lacking := missing_data(job.config, settings.root):
            settings.say(f"{job.label}: data not at hand: {lacking}")
            continue
        config = place(job.config, settings)
        key = (config_hash(config), job.budget)
        if key not in seen:
            seen[key] = measure_ahead(config)
        ahead = seen[key]
        settings.say(f"{job.label}: {f'ahead: {ahead}' if ahead is not None else WITHOUT}")
        total += (ahead.seconds or 0.0) if ahead is not None else 0.0
    return total


def place(config: Config, settings: Settings) -> Config:
    """Return `config` with the folders and the device of `settings`."""
    data = replace(config.data, root=settings.root)
    return replace(config, data=data, out=settings.out, device=settings.device)


def do(job: Job, settings: Settings) -> bool:
    """Do one job, and append its line; True when that line is there now, also where it was before."""
    if _is_there(job, settings):
        return True
    lacking = "" if job.budget == COUNT else missing_data(job.config, settings.root)
    if lacking:
        settings.say(f"{job.label}: data not at hand: {lacking}")
        return False
    with _claimed(job, settings) as free:
        if _is_there(job, settings):  # another process had it, and has ended
            return True
        if not free:
            settings.say(f"{job.label}: another process has it")
            return False
        if job.budget == COUNT:
            return _count(job, settings)
        return _train(job, settings)


def _is_there(job: Job, settings: Settings) -> bool:
    """Return whether the run of a job has its line; what is counted looks for its own."""
    return job.budget != COUNT and bool(find_run(read_records(settings.records), job.config, job.budget))


@contextmanager
def _claimed(job: Job, settings: Settings) -> Iterator[bool]:
    """Hold the job for this process, and say whether no other one does.

    It is held beside the lines, so that no seed is trained twice for one file of them, wherever the runs are put; and
    in the folder of the runs, where two would go on with one run.
    """
    from torchcaps.train.check import check_out

    check_out(settings.out)
    name = f".{config_hash(job.config)}-{job.budget}-{job.config.seed}.lock"
    with ExitStack() as stack:
        free = True
        for folder in (settings.records.parent / CLAIMS, settings.out):
            folder.mkdir(parents=True, exist_ok=True)
            held = hold(folder / name)
            free = free and held is not None
            if held is not None:
                stack.enter_context(held)
        yield free


def _count(job: Job, settings: Settings) -> bool:
    assert isinstance(job.cell.how, Count)
    from torchcaps.train.devices import choose_device
    from torchcaps.train.machine import describe_machine

    raised = revisions_of(job.config, trained=False)
    line = {
        "cell": job.cell.id,
        "budget": COUNT,
        "seed": job.config.seed,
        "config_hash": count_hash(job.config),
        **({"revisions": raised} if raised else {}),
    }
    if any(line.items() <= each.items() for each in read_records(settings.records)):
        return True
    try:
        device = choose_device(job.cell.how.device)
        value = job.cell.how.measure(job.config)
    except ValueError as error:  # such as for a device that is not there
        settings.say(f"{job.label}: {error}")
        return False
    append_record(settings.records, line | {"value": value, "environment": describe_machine() | {"device": device}})
    settings.say(f"{job.label}: {job.cell.metric.show(value)} {job.cell.metric.unit}")
    return True


def _train(job: Job, settings: Settings) -> bool:
    """Train, or go on where a run was cut, or only note a run that was cut between its end and its line."""
    from torchcaps.inspect import find_probes
    from torchcaps.train import fit
    from torchcaps.train.devices import choose_device
    from torchcaps.train.machine import describe_machine

    config = place(job.config, settings)
    assert job.budget != COUNT
    known: dict[str, Any] = {"cell": job.cell.id, "budget": job.budget, "width": width(job.cell, job.budget)}
    if (folder := find_finished(config.out, config_hash(config), config.seed)) is not None:
        append_record(settings.records, describe_run(folder, **known))
        settings.say(f"{job.label}: was finished in {folder}")
        return True
    ahead = measure_ahead(config if job.budget != SMOKE else place(_full(job), settings))
    if ahead is not None:
        known |= {"step_seconds": ahead.step_seconds, "step_images": ahead.batch}
        settings.say(f"{job.label}: {'the budget full would take ' if job.budget == SMOKE else 'ahead: '}{ahead}")
    device, begun = choose_device(config.device, config.processes), time.monotonic()
    reset_peak(device)
    try:
        result = fit(config, _unfinished(config), find_probes(config))
    except FloatingPointError as error:
        failure = {
            "seed": config.seed,
            "config_hash": config_hash(config),
            "revisions": revisions_of(config),
            "failure": " ".join(str(error).split()),
        }
        append_record(settings.records, known | failure | {"environment": describe_machine() | {"device": device}})
        settings.say(f"{job.label}: failed: {error}")
        return True
    append_record(settings.records, describe_run(result.folder, **known, peak_memory=peak_memory(device)))
    took = time.monotonic() - begun
    settings.say(f"{job.label}: test accuracy {result.test_accuracy:.2%} in {show_time(took)}")
    if job.budget != SMOKE:
        settings.finish(result.folder)
    return True


def measure_ahead(config: Config) -> Ahead | None:
    """Return what a run of `config` will take; None where that cannot be measured, of which the run itself says why."""
    try:
        return look_ahead(config)
    except (ArithmeticError, OSError, RuntimeError, TypeError, ValueError, MemoryError):
        return None


def _full(job: Job) -> Config:
    assert isinstance(job.cell.how, Train)
    return apply_budget(job.cell.how.build(), FULL, job.cell)


def _unfinished(config: Config) -> bool:
    """Return whether the newest run to go on with is one of `config` that began by itself: of one that began where a
    shorter run ended the line would be another's.
    """
    from torchcaps.train.resuming import find_unfinished

    try:
        run = find_unfinished(config)
        return config_hash(run.read_config(), run.read_revisions()) == config_hash(config)
    except ValueError:
        return False
