"""Parts of a plan as jobs of SLURM, by submitit, which is an extra of the installation. No cluster was tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

MINUTES = 24 * 60  # that a job may take, where no setting says it


class Command:
    """A command of torchcaps as a job: `submitit` pickles it, and calls it where it runs.

    Where SLURM puts a job off, at its time limit or for another one, it is submitted again, and what was cut goes on.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    def __call__(self) -> int:
        """Run it; returns its exit status.

        Raises:
            RuntimeError: where that is not 0, so that the job is seen to have failed.
        """
        from torchcaps.cli import main

        status = main(self.words)
        if status:
            raise RuntimeError(f"torchcaps {' '.join(self.words)} ended with status {status}")
        return status

    def checkpoint(self) -> Any:
        """Return what is submitted in place of a job that is put off."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports] - an extra

        return DelayedSubmission(Command(self.words))


def submit_parts(
    words: Sequence[str],
    numbers: Sequence[int],
    parts: int,
    folder: Path,
    where: Literal["slurm", "local"],
    settings: Sequence[str] = (),
) -> Iterator[tuple[int, str]]:
    """Submit a command once for each of the parts `numbers` of `parts`; yields each part and the name of its job.

    Args:
        words: of the command, without its --part.
        numbers: from 1.
        parts: of the plan.
        folder: that jobs write to what they say.
        where: slurm, or local, which starts processes of this machine.
        settings: of a job, NAME=VALUE, as `submitit.AutoExecutor.update_parameters` takes them, or slurm_NAME;
            timeout_min is a day otherwise.

    Raises:
        ModuleNotFoundError: where submitit is not installed.
        ValueError: for a setting that is no NAME=VALUE, or that submitit does not know; where SLURM is not there.
    """
    import submitit  # pyright: ignore[reportMissingImports] - an extra

    known = {"timeout_min": MINUTES} | read_settings(settings)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=where)
        executor.update_parameters(name="torchcaps", **known)
    except (NameError, RuntimeError) as error:  # of a parameter that is unknown; where there is no sbatch
        raise ValueError(f"jobs cannot be submitted to {where}: {' '.join(str(error).split())}") from error
    for number in numbers:
        job = executor.submit(Command([*words, "--part", f"{number}/{parts}"]))
        yield number, str(job.job_id)


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return settings NAME=VALUE by name; what reads as a number is one.

    Raises:
        ValueError: for another form.
    """
    found: dict[str, Any] = {}
    for each in settings:
        name, joined, value = each.partition("=")
        if not joined or not name.isidentifier():
            raise ValueError(f"--slurm has {each!r}; it takes NAME=VALUE, such as partition=gpu")
        found[name] = value
        with suppress(ValueError):
            found[name] = json.loads(value)
    return found
