"""`fit`: a run of one `Config`, by one process or by several, of which each is a `Trainer`'s."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from torch import nn

from torchcaps.config import Config
from torchcaps.memory import kept
from torchcaps.plugins import check_imports, import_handed_on
from torchcaps.ranks import given_ranks
from torchcaps.train.callbacks import Callback, check_callbacks
from torchcaps.train.check import check_config
from torchcaps.train.devices import settled
from torchcaps.train.given import Given, give
from torchcaps.train.interrupt import Interrupted, Interruption
from torchcaps.train.loggers import Logged, Name
from torchcaps.train.loop import Trainer
from torchcaps.train.processes import build_fabric, join_ranks, launch, name_shortage
from torchcaps.train.run import Result
from torchcaps.train.seeds import seeds_kept

_ALONE = threading.Lock()  # held by the one run that a process trains


def fit(
    config: Config,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    max_minutes: float | None = None,
    *,
    start: str | Path | None = None,
    model: nn.Module | None = None,
    data: Any = None,
    loggers: Sequence[Name | Logger] = (),
) -> Result:
    """Train, select on the validation split, and measure the selected weights once on the test split.

    With `Config.test_curve` the test split is measured after each epoch as well, and written beside: the run is the
    same. Where torchrun or srun has started processes together, this one is a part of their one run. Random numbers
    that the caller draws afterwards are those that it would have drawn without.

    Args:
        config: all that determines the run, but for what is given below.
        resume: continue the newest unfinished run of this config, and end as if it had never stopped; where there is
            none, go on from the end of a finished one of fewer epochs.
        callbacks: what looks at the run as it goes, and cannot change it, see `torchcaps.train.Callback`.
        max_minutes: after which the run is saved and stopped, as a signal would stop it.
        start: folder of a run, whose weights this one begins with where names and shapes agree.
        model: a module from images to scores [b, classes] or `Output`, in place of `config.model`; in one process it
            has the selected weights at the end. The run records it as "external", and loading it takes it again.
        data: in place of `config.data.name`, see `torchcaps.data.given.given_data`; "external" as well. Batches of a
            DataLoader are its own; a run that is stopped within an epoch begins that epoch again.
        loggers: of Fabric, or csv, tensorboard and wandb, see `torchcaps.train.loggers`.

    Raises:
        ValueError: for values that contradict each other, the data or the machine; when there is nothing to resume;
            when the config asks for a probe (`agreement`) that no callback answers.
        FloatingPointError: when the loss is no longer finite; names the step, and the layer where that began.
        MemoryError: when a batch does not fit into memory; names a batch size to try.
        OSError: when something cannot be written, or one of several processes has ended.
        Interrupted: at the end of the step in which SIGINT (Ctrl-C) or SIGTERM came, or `max_minutes` were over; the
            run is saved. It is a `KeyboardInterrupt`.
    """
    if max_minutes is not None and not 0 <= max_minutes < math.inf:
        raise ValueError(f"max_minutes is {max_minutes}; it must be a number of minutes, at least 0")
    given = give(start, model, data)
    config = given.settle(join_ranks(config), resume)
    check_config(config)
    callbacks = (*callbacks, *([Logged(loggers)] if loggers else []))
    check_callbacks(config, callbacks)
    fabric = build_fabric(config)
    if not _ALONE.acquire(blocking=False):
        raise ValueError(
            "another run is being trained in this process, and both would draw from torch's one generator: "
            "train in processes of their own"
        )
    with ExitStack() as stack:
        stack.callback(_ALONE.release)
        spawned = config.processes > 1 and given_ranks() is None
        interruption = Interruption(spawned, max_minutes)
        if spawned:
            stack.enter_context(interruption)
        ended = launch(fabric, partial(_train, config, resume, interruption, callbacks, given))
    if isinstance(ended, Interrupted):
        raise ended
    return ended


def _train(
    config: Config,
    resume: bool,
    interruption: Interruption,
    callbacks: Sequence[Callback],
    given: Given,
    fabric: Fabric,
) -> Result | Interrupted:
    import_handed_on()
    check_imports(config.imports, f"the run {config.recipe}")
    device = fabric.device
    with name_shortage(config, device), settled(device), kept(device), seeds_kept(device):
        trainer = Trainer(fabric, config, resume, interruption, callbacks, given)
        try:
            return trainer.run()
        except Interrupted as stop:  # returned: several processes end together
            return stop.with_traceback(None)  # which holds the trainer, and so the group of processes and its threads
