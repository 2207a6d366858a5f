"""What learns in a run, and how a step of it is taken: the model, its losses and optimisers, their schedule, the
averaged weights and the meter, without folder, epochs or display.

A step draws its random numbers from a generator seeded by (seed, step, rank). So what follows is a function of the
state that `state` returns, the batches and the number of the step alone.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import Config
from torchcaps.data import Batches, Data
from torchcaps.kernels.timing import TIMED
from torchcaps.layers import choose, chosen_forms, set_forms
from torchcaps.losses import multi_hot, score_threshold
from torchcaps.models import Model
from torchcaps.train.averaging import Average
from torchcaps.train.classes import class_weights
from torchcaps.train.compiling import compile_module
from torchcaps.train.devices import choose_compile, is_depthwise
from torchcaps.train.meter import Meter
from torchcaps.train.optim import build_schedule, follow_on
from torchcaps.train.phases import Batch, LossModule, build_phases, follow_schedule, step_phases
from torchcaps.train.stages import check_stages, held_part
from torchcaps.train.statistics import count_batches, measure_statistics


class Learner:
    """One process's part of what a run trains.

    Args:
        fabric: launched.
        config: of the run.
        data: how many classes there are, and what an image shows.
        batches: of training, this process's share.
        model: it is brought to the device, its convolutions channels last.
    """

    def __init__(self, fabric: Fabric, config: Config, data: Data, batches: Batches, model: Model):
        self.fabric, self.config, self.data, self.batches = fabric, config, data, batches
        self.model = convert_conv2d_weight_memory_format(model, torch.channels_last)
        fabric.to_device(self.model)
        check_stages(self.model, config)
        weights = class_weights(config, data.train)
        self.phases = build_phases(self.model, config, None if weights is None else weights.to(fabric.device))
        self.schedule = build_schedule(self.phases[0].optimizer, config.schedule, len(batches), config.epochs)
        self._first_rates = [group["lr"] for group in self.phases[0].optimizer.param_groups]
        self._first_schedule = copy.deepcopy(self.schedule.state_dict())
        follow_schedule(self.phases)
        module = LossModule(self.model, *self.phases)
        depthwise = config.compile == "auto" and is_depthwise(config.model)
        wanted = choose_compile(config.compile, fabric.device.type, depthwise)
        self.compiled = wanted and compile_module(module, fabric.device)
        self.wrapped, self.optimizer = fabric.setup(module, self.phases[0].optimizer)
        threshold, terms = score_threshold(config.loss), len(self.model.penalties)
        self.meter = Meter(fabric.device, data.shown, threshold, terms)
        self.average = Average(self.model, config.average) if config.average else None
        self.measured = count_batches(self.model, batches, config.epochs, averaged=self.average is not None)

    @property
    def steps(self) -> int:
        """Return the steps of the whole run."""
        return self.config.epochs * len(self.batches)

    @property
    def rate(self) -> float:
        """Return the learning rate of the next step, of the first of the optimiser's groups."""
        return float(self.schedule.get_last_lr()[0])

    def choose(self) -> dict[str, Any]:
        """Have capsule layers take the faster form on a GPU, see `torchcaps.choose`; what a checkpoint says stands.

        Returns what is written down of it. Kernels are tried here, before a step is compiled. On a CPU nothing is done.
        """
        device = self.fabric.device
        if device.type not in TIMED:
            return {}
        share = self.config.batch_size // self.fabric.world_size
        images = torch.zeros(share, self.data.channels, *self.data.image_size, device=device)
        with self.fabric.autocast():
            found = choose(self.model, images.contiguous(memory_format=torch.channels_last), self.compiled, keep=True)
        return {"forms": {name: choice._asdict() for name, choice in found.items()}} if found else {}

    def step(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Tensor:
        """Take all phases on this process's share of batch `step` of `epoch`, both counted from 0; returns loss and
        accuracy of all processes as [2], on the device.
        """
        done = epoch * len(self.batches) + step
        draws = np.random.SeedSequence((self.config.seed, done, self.fabric.global_rank))
        torch.manual_seed(int(draws.generate_state(1)[0]))
        images = images.contiguous(memory_format=torch.channels_last)
        targets, progress = multi_hot(labels, self.data.num_classes), done / max(1, self.steps - 1)
        parts = self.batches.parts(epoch, step) if self.config.loss.reconstruction else None
        batch = Batch(images, labels, targets, progress, parts)
        loss, scores, penalties = step_phases(
            self.fabric, self.model, self.wrapped, self.optimizer, self.phases, batch, self.config.clip
        )
        self.schedule.step()
        follow_schedule(self.phases)
        if self.average is not None:
            self.average.update()
        right = self.meter.update(loss, scores, labels, penalties)
        values = torch.stack([loss, right.float().mean()])
        if self.fabric.world_size > 1:  # so that all see a loss that is not finite, and in the same step
            torch.distributed.all_reduce(values)
        return values / self.fabric.world_size

    def evaluated(self, epoch: int) -> Model:
        """Return the model as it is to be evaluated and selected after `epoch`, counted from 0, see
        `torchcaps.train.statistics`; all processes call it.
        """
        model = self.model if self.average is None else self.average.averaged(self.model)
        if not self.measured:
            return model
        parts = self.config.loss.reconstruction > 0
        return measure_statistics(self.fabric, model, self.batches, self.measured, parts, held_part(self.config, epoch))

    @property
    def statistics(self) -> dict[str, int]:
        """Return what is written down where the batch-norm statistics of evaluations are measured apart from
        training's.
        """
        return {"statistics_batches": self.measured} if self.measured else {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of all this beside the weights; all processes call it."""
        return {
            "optimizers": [phase.optimizer.state_dict() for phase in self.phases],
            "schedule": self.schedule.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "meter": self.meter.state(),
            **({"forms": forms} if (forms := chosen_forms(self.model)) else {}),
            **({"average": self.average.state()} if self.average is not None else {}),
        }

    def restore(self, state: dict[str, Any], epoch: int) -> None:
        """Go back to a `state`, `epoch` epochs of which are finished; the weights are not in it.

        Raises:
            AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError: when it is not of such a run.
        """
        for phase, values in zip(self.phases, state["optimizers"], strict=True):
            phase.optimizer.load_state_dict(values)
        if "epochs" in state:  # of a shorter run, whose schedule is another
            self.schedule.load_state_dict(copy.deepcopy(self._first_schedule))  # it may have been stepped here already
            follow_on(self.schedule, self._first_rates, epoch * len(self.batches))
            follow_schedule(self.phases)
        else:
            self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.meter.load(state["meter"], self.fabric.global_rank)
        set_forms(self.model, state.get("forms", {}))
        if self.average is not None:
            self.average.load(state["average"])
