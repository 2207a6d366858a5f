"""Training steps of papers' networks in parts: which share of the time each takes, and what a step holds at its peak.

`shares/NAME`: seconds of a step by `torchcaps.train.profile`, as the library trains. Routing is all of "capsules"; what
it cannot be faster than is the rest, so nobody should expect of a network what a table of layers says.

`memory/NAME`: the peak of a step is parameters, buffers, the optimiser's state, the batch, and the most that torch
allocates above them (scratch memory of the kernels' loops, some kilobytes an image, is not counted): as the library
trains (bf16 where the machine has it), in float32, and in float32 with the capsules routed as public code writes it, by
a tensor of votes. A straight line through two batch sizes says which batch reaches 8e9 bytes. Where the einsum form has
not the loss of ours, to `TOLERANCE`, or is not written for a layer, it is left out.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from naive_layer import naive_capsules
from networks import EinsumStack, native_bf16
from report import allocated_bytes, record
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.capsules import Capsules
from torchcaps.config import Config, LossConfig, OptimiserConfig
from torchcaps.layers import CapsuleLayer, CapsuleStack
from torchcaps.layers.transforms import flatten_space
from torchcaps.losses import build_criterion, multi_hot
from torchcaps.models import Model, create_model
from torchcaps.routing import Step
from torchcaps.routing.inverted_attention import InvertedAttention
from torchcaps.train.optim import build_optimiser
from torchcaps.train.profile import profile_step

MEMORY = 8e9  # bytes
TOLERANCE = 1e-3  # of the loss, in float32
CLASSES = 10
ADAM = OptimiserConfig("adam", lr=1e-4)


class Case(NamedTuple):
    """A network of a paper at full size."""

    model: str
    image: tuple[int, int, int]
    loss: LossConfig
    batch: int  # of the step whose time is taken
    sizes: tuple[int, int] = (2, 4)  # batches whose peaks are measured


CROSS_ENTROPY, MARGIN = LossConfig("cross-entropy"), LossConfig("margin")
CASES = {
    "capsnet": Case("capsnet", (1, 28, 28), LossConfig("margin", reconstruction=0.0005), 128, (16, 32)),
    "attention-resnet-cifar10": Case("attention-resnet-cifar10", (3, 32, 32), CROSS_ENTROPY, 16),
    "em-resnet-cifar10": Case("em-resnet-cifar10", (3, 32, 32), LossConfig("spread"), 8),
    "fm-resnet-cifar10": Case("fm-resnet-cifar10", (3, 32, 32), CROSS_ENTROPY, 32, (4, 8)),
    "mobilenetv2_100.xnodr": Case("mobilenetv2_100.xnodr", (3, 224, 224), MARGIN, 8),
    "discriminative-capsnet": Case("discriminative-capsnet", (1, 28, 28), MARGIN, 64, (16, 32)),
    "encapnet-v1": Case("encapnet-v1", (3, 32, 32), CROSS_ENTROPY, 16),
    "efficient-capsnet-mnist": Case("efficient-capsnet-mnist", (1, 28, 28), MARGIN, 64, (16, 32)),
}


class NaiveStack(nn.Module):
    """The layers of a stack, one after the other, routed by the naive forms."""

    def __init__(self, stack: CapsuleStack):
        super().__init__()
        self.layers, self.iterations = stack.layers, stack.iterations

    def forward(self, children: Capsules) -> tuple[Step, ...]:
        steps = []
        for layer in self.layers:
            assert isinstance(layer, CapsuleLayer)
            poses, activations = naive_capsules(layer, _of(layer, children), self.iterations)
            space = layer.votes(children).space
            places = (lambda x, space=space: x.unflatten(1, space)) if space else (lambda x: x.squeeze(1))
            children = Capsules(places(poses), None if activations is None else places(activations))
            steps.append(Step(children, None, None))
        return tuple(steps)


def _of(layer: CapsuleLayer, children: Capsules) -> Capsules:
    """The children as the naive forms take them: flat below a linear layer."""
    return flatten_space(children) if len(layer.transform.shape) == 4 else children


def einsum_form(model: Model) -> Model | None:
    """A copy whose stacks are routed by einsum; None where it has none, or layers that einsum is not written for."""
    model = copy.deepcopy(model)
    stacks = [(name, each) for name, each in model.named_modules() if isinstance(each, CapsuleStack)]
    if not stacks:
        return None
    for name, stack in stacks:
        for layer in stack.layers:
            assert isinstance(layer, CapsuleLayer)
            transform = layer.transform
            if transform.place is not None or transform.shared > 1 or getattr(transform, "padding", 0):
                return None
        attention = stack.schedule == "concurrent" and all(_attends(layer) for layer in stack.layers)
        if stack.schedule == "concurrent" and not attention:
            return None
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], EinsumStack(stack, every=True) if attention else NaiveStack(stack))
    return model


def _attends(layer: nn.Module) -> bool:
    return isinstance(layer, CapsuleLayer) and type(layer.routing) is InvertedAttention


class Bench:
    """A network and its forms, on noise."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        channels, *side = case.image
        self.case = case
        self.model = create_model(
            case.model, num_classes=CLASSES, in_channels=channels, image_size=(side[0], side[1])
        ).train()
        self.criterion = build_criterion(case.loss)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        return torch.rand(batch, *self.case.image, generator=generator), torch.arange(batch) % CLASSES

    def loss(self, model: Model, batch: int, bf16: bool = False) -> Tensor:
        images, labels = self.draw(batch)
        images = images.contiguous(memory_format=torch.channels_last) if bf16 else images
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = model(images, labels)
        return self.criterion(output, images, multi_hot(labels, CLASSES))

    def peak(self, model: Model, batch: int, bf16: bool = False) -> int:
        """Bytes at the peak of a training step, of the second one."""
        model = copy.deepcopy(model)
        model = convert_conv2d_weight_memory_format(model, torch.channels_last) if bf16 else model
        optimizer = build_optimiser(model.parameters(), ADAM)

        def step() -> None:
            optimizer.zero_grad()
            self.loss(model, batch, bf16).backward()
            optimizer.step()

        step()
        optimizer.zero_grad()
        state = [x for each in optimizer.state.values() for x in each.values() if isinstance(x, Tensor)]
        there = sum(x.nbytes for x in (*model.parameters(), *model.buffers(), *state))
        return there + allocated_bytes(step).peak


def largest_batch(sizes: tuple[int, int], peaks: list[int]) -> int:
    """Where the straight line through two peaks reaches `MEMORY`."""
    slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    return int((MEMORY - peaks[0]) / slope) + sizes[0]


def shares(name: str, case: Case, repeats: int) -> None:
    bench = Bench(case)
    config = Config(loss=case.loss, optimiser=ADAM, batch_size=case.batch)
    seconds = profile_step(bench.model, config, case.image, CLASSES, repeats=repeats)
    whole = sum(seconds.values())
    values: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "batch": case.batch,
        "repeats": repeats,
        "step_ms": round(1000 * whole, 1),
        "shares": {share: round(each / whole, 4) for share, each in seconds.items()},
    }
    record(f"shares/{name}", values)


def memory(name: str, case: Case) -> None:
    bench = Bench(case)
    einsum = einsum_form(bench.model)
    forms: dict[str, Callable[[int], int]] = {
        "ours": partial(bench.peak, bench.model, bf16=native_bf16()),
        "float32": partial(bench.peak, bench.model),
    }
    difference = None
    if einsum is not None:
        losses = [bench.loss(copy.deepcopy(each), case.sizes[0]).item() for each in (bench.model, einsum)]
        difference = abs(losses[0] - losses[1]) / abs(losses[0])
        if difference < TOLERANCE:
            forms["einsum"] = partial(bench.peak, einsum)
    found = {form: [measure(size) for size in case.sizes] for form, measure in forms.items()}
    values: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "precision": "bf16" if native_bf16() else "fp32",
        "sizes": case.sizes,
        "difference": difference,
        "peak_bytes": found,
        "largest_in_8_gb": {form: largest_batch(case.sizes, peaks) for form, peaks in found.items()},
    }
    record(f"memory/{name}", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["shares", "memory", []], help="both, if none is named")
    parser.add_argument("--network", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    for name in flags.network:
        if "shares" in flags.parts or not flags.parts:
            shares(name, CASES[name], flags.repeats)
        if "memory" in flags.parts or not flags.parts:
            memory(name, CASES[name])


if __name__ == "__main__":
    main()
