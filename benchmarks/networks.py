"""Whole networks: what capsules cost above their convolutions, and training against einsum; a table of goals.

- `capsnet` on MNIST's size: forward and backward of the network without its decoder over those of its two convolutions
  alone.
- `capsnet` with its decoder, and `attention-resnet-cifar10` at 2 and at 4 iterations: training steps (forward,
  backward, optimiser) as the library trains on this machine, channels-last, and in bf16 where it multiplies in bf16
  natively, else in float32; against the same network in float32 whose capsules are routed as public code writes it: a
  tensor of votes, made anew in every step, and every step of every layer computed. The goal is judged like for like:
  both in float32, and einsum with only the steps that reach the output, where there are others. What skipping saves, of
  all time saved, is its share.

Loss and gradients of the library's network in float32 are compared with those of the einsum form first, on the images
that are timed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import naive
import torch
from report import interleaved, median_ratio, record
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.capsules import Capsules
from torchcaps.config import LossConfig, OptimiserConfig
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform
from torchcaps.layers.transforms import flatten_space
from torchcaps.losses import build_criterion, margin_loss, multi_hot
from torchcaps.models import CapsNet, Model, create_model
from torchcaps.routing import Step
from torchcaps.routing.inverted_attention import InvertedAttention
from torchcaps.train.devices import choose_precision
from torchcaps.train.optim import build_optimiser

TOLERANCE = 1e-3  # of float32: the distance of a parameter's two gradients over the length of one
FLOOR = 1e-4  # of that length, of all parameters' together: a logit's bias that all classes share has none
CLASSES = 10


class Case(NamedTuple):
    """One line of the table: a network to train, and how many times the images a second it must reach."""

    model: str
    loss: LossConfig
    optimiser: OptimiserConfig
    image: tuple[int, int, int]
    batch: int
    goal: float
    iterations: int = 3
    skipping: bool = False  # whether there are steps that reach nothing


SGD = OptimiserConfig("sgd", lr=1e-4)  # small: the images are noise, and weights shall stay finite
CASES = {
    "capsnet": Case(
        "capsnet", LossConfig("margin", reconstruction=0.0005), OptimiserConfig("adam", lr=1e-4), (1, 28, 28), 128, 3
    ),
    **{
        f"attention-resnet-cifar10, {r} iterations": Case(
            "attention-resnet-cifar10", LossConfig("cross-entropy"), SGD, (3, 32, 32), 8, 5, r, True
        )
        for r in (2, 4)
    },
}
CAPSULES_GOAL = 0.15


class EinsumStack(nn.Module):
    """The layers of a stack, routed by `naive`: dynamic routing layer after layer, or attention, concurrently.

    Args:
        stack: of layers of dynamic routing ("sequential") or of inverted attention ("concurrent").
        every: compute all concurrent steps; else those of `CapsuleStack.plan`.
    """

    def __init__(self, stack: CapsuleStack, every: bool):
        super().__init__()
        self.layers, self.iterations = stack.layers, stack.iterations
        self.concurrent = stack.schedule == "concurrent"
        self.plan = {(level, t) for level in range(len(stack.layers)) for t in range(stack.iterations)}
        if not every:
            self.plan = set(stack.plan())

    def forward(self, children: Capsules) -> tuple[Step, ...]:
        routed = self._attention(children.poses) if self.concurrent else self._dynamic(children.poses)
        return tuple(Step(Capsules(poses), None, None) for poses in routed)

    def _dynamic(self, poses: Tensor) -> list[Tensor]:
        routed = [poses]
        for layer in self.layers:
            votes, place = votes_of(layer, routed[-1])
            routed.append(place(naive.dynamic(votes, self.iterations)))
        return routed[1:]

    def _attention(self, poses: Tensor) -> list[Tensor]:
        """A first pass upwards; then each layer reads what the layer below had in the iteration before."""
        routed = [poses]
        for layer in self.layers:
            routed.append(attend(layer, routed[-1], None))
        for t in range(1, self.iterations):
            renewed = [
                attend(layer, routed[level], routed[level + 1]) if (level, t) in self.plan else routed[level + 1]
                for level, layer in enumerate(self.layers)
            ]
            routed[1:] = renewed
        return routed[1:]


def votes_of(layer: nn.Module, poses: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Votes [b, p, i, j, d] of children [b, (h, w,) i, d], and what gives parents [b, p, j, d] their positions."""
    assert isinstance(layer, CapsuleLayer)
    transform = layer.transform
    if not isinstance(transform, ConvTransform):
        flat = flatten_space(Capsules(poses)).poses
        return naive.linear_votes(flat, transform.weight, transform.rows), lambda parents: parents.squeeze(1)
    space = [(side - transform.shape[1]) // transform.stride + 1 for side in poses.shape[1:3]]
    votes = naive.conv_votes(poses, transform.weight, transform.rows, transform.stride)
    return votes, lambda parents: parents.unflatten(1, space)


def attend(layer: nn.Module, children: Tensor, parents: Tensor | None) -> Tensor:
    """One step of one layer, [b, (h, w,) j, d], from the parents of the step before."""
    assert isinstance(layer, CapsuleLayer) and isinstance(layer.routing, InvertedAttention)
    votes, place = votes_of(layer, children)
    get = dict(layer.routing.named_parameters())
    seen = None if parents is None else parents.reshape(len(parents), -1, *parents.shape[-2:])
    return place(naive.attend(votes, seen, get["norm.weight"], get["norm.bias"], layer.routing.scale))


class Bench:
    """A network in its three forms, on images and labels that they share."""

    def __init__(self, case: Case, batch: int):
        torch.manual_seed(0)
        self.case, self.batch = case, batch
        channels, *side = case.image
        self.model: Model = create_model(
            case.model, num_classes=CLASSES, in_channels=channels, image_size=(side[0], side[1])
        )
        self.stack.iterations = case.iterations
        self.images = torch.rand(batch, *case.image)
        self.labels = torch.randint(0, CLASSES, (batch,))
        self.criterion = build_criterion(case.loss)

    @property
    def stack(self) -> CapsuleStack:
        stack = self.model.stack
        assert isinstance(stack, CapsuleStack)
        return stack

    def einsum(self, every: bool = True) -> Model:
        """A copy of the network with an `EinsumStack` in the place of its stack."""
        model = copy.deepcopy(self.model)
        model.stack = EinsumStack(model.stack, every)  # pyright: ignore[reportArgumentType]
        return model

    def loss(self, model: Model, as_trained: bool = False) -> Tensor:
        images = self.images.contiguous(memory_format=torch.channels_last) if as_trained else self.images
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=as_trained and native_bf16()):
            output = model(images, self.labels)
        return self.criterion(output, images, multi_hot(self.labels, CLASSES))

    def difference(self) -> dict[str, float]:
        """Of the library's network and the einsum form, both in float32: of the loss, and the largest of a gradient."""
        found = []
        for model in (self.einsum(), copy.deepcopy(self.model)):
            loss = self.loss(model)
            found.append((loss.item(), torch.autograd.grad(loss, list(model.parameters()))))
        (loss, naives), (ours, gradients) = found
        least = FLOOR * torch.cat([gradient.flatten() for gradient in naives]).norm()
        apart = [((a - b).norm() / b.norm().clamp_min(least)).item() for a, b in zip(gradients, naives, strict=True)]
        return {"loss": abs(ours - loss) / abs(loss), "gradients": max(apart)}

    def training(self, model: Model, as_trained: bool = False) -> Callable[[], None]:
        model = model.train()
        if as_trained:
            model = convert_conv2d_weight_memory_format(model, torch.channels_last)
        optimizer = build_optimiser(model.parameters(), self.case.optimiser)

        def step() -> None:
            optimizer.zero_grad()
            self.loss(model, as_trained).backward()
            optimizer.step()

        return step


def native_bf16() -> bool:
    """Whether the library trains in bf16 on this machine."""
    return choose_precision("auto", "cpu") == "bf16-mixed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, help="each network has its own where it is not given")
    flags = parser.parse_args()
    lines = [part_of_capsules(CASES["capsnet"], flags.batch or CASES["capsnet"].batch, 3 * flags.repeats)]
    lines += [compare(name, case, flags.batch or case.batch, flags.repeats) for name, case in CASES.items()]
    print("\n".join(lines))


def part_of_capsules(case: Case, batch: int, repeats: int) -> str:
    """Record what `capsnet` costs above its convolutions, and return a line of the table."""
    torch.manual_seed(0)
    model = convert_conv2d_weight_memory_format(CapsNet(CLASSES, 1, (28, 28), decoder=False), torch.channels_last)
    images = torch.rand(batch, *case.image).contiguous(memory_format=torch.channels_last)
    targets = multi_hot(torch.randint(0, CLASSES, (batch,)), CLASSES)

    def convolve() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bf16()):
            return model.primary.conv(torch.relu(model.stem(images)))

    upstream = torch.randn_like(convolve())

    def stem() -> None:
        convolve().backward(upstream)

    def whole() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bf16()):
            output = model(images)
        margin_loss(output.scores, targets).backward()

    convolutions, network = interleaved([stem, whole], repeats)
    above = median_ratio(network, convolutions) - 1
    values = {
        "threads": torch.get_num_threads(),
        "batch": batch,
        "repeats": repeats,
        "precision": "bf16" if native_bf16() else "fp32",
        "convolutions_ms": round(1000 * median(convolutions), 1),
        "network_ms": round(1000 * median(network), 1),
        "capsules_above_convolutions": round(above, 3),
        "goal": CAPSULES_GOAL,
        "passed": above <= CAPSULES_GOAL,
    }
    record("networks/capsnet, capsules above convolutions", values)
    return line("capsnet, capsules above convolutions", f"{above:.1%}", f"{CAPSULES_GOAL:.0%}", values["passed"])


def compare(name: str, case: Case, batch: int, repeats: int) -> str:
    """Record images a second of ours and of the einsum form, and return a line of the table."""
    bench = Bench(case, batch)
    difference = bench.difference()
    precision = "bf16" if native_bf16() else "fp32"
    losses = {"fp32": bench.loss(bench.model).item()}
    losses[precision] = bench.loss(bench.model, as_trained=True).item()
    steps = [bench.training(bench.einsum()), bench.training(copy.deepcopy(bench.model), as_trained=True)]
    steps += [bench.training(copy.deepcopy(bench.model))]
    steps += [bench.training(bench.einsum(every=False))] if case.skipping else []
    naives, ours, single, *skipped = interleaved(steps, repeats)
    ratio, alike = median_ratio(naives, ours), median_ratio(skipped[0] if skipped else naives, single)
    values = {
        "threads": torch.get_num_threads(),
        "batch": batch,
        "iterations": case.iterations,
        "repeats": repeats,
        "precision": precision,
        "difference": difference,
        "loss": losses,
        "einsum_images_per_second": per_second(batch, naives),
        "images_per_second": per_second(batch, ours),
        "fp32_images_per_second": per_second(batch, single),
        "speed_up": round(ratio, 2),
        "fp32_speed_up": round(median_ratio(naives, single), 2),
        "like_for_like": round(alike, 2),
        "goal": case.goal,
        "passed": alike >= case.goal and max(difference.values()) <= TOLERANCE,
    }
    if skipped:
        saved = [(a - b) / (a - c) for a, b, c in zip(naives, skipped[0], ours, strict=True)]
        values |= {
            "skipping_images_per_second": per_second(batch, skipped[0]),
            "skipping_speed_up": round(median_ratio(naives, skipped[0]), 2),
            "skipping_share_of_time_saved": round(median(saved), 3),
        }
    record(f"networks/{name}", values)
    return line(f"{name}, training", f"{alike:.2f}x", f"{case.goal:g}x", values["passed"])


def per_second(batch: int, seconds: list[float]) -> float:
    return round(batch / median(seconds), 2)


def line(name: str, found: str, goal: str, passed: bool) -> str:
    return f"{name:48}{found:>8}  goal {goal:>4}  {'ok' if passed else '--'}"


if __name__ == "__main__":
    main()
