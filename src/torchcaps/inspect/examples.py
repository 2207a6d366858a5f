"""The images that a report looks into: what was decoded of each, its pose moved, its parts on their way to parents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchcaps.data import Batches
from torchcaps.inspect.couplings import Box, RoutedLayer, trace_routing
from torchcaps.inspect.measured import Measured, choose_right, worst
from torchcaps.inspect.pairs import AgreedLayer, trace_pairs
from torchcaps.inspect.pictures import shrink
from torchcaps.inspect.reconstruction import absent_class, colour_sets, decode_classes, pose_sweep
from torchcaps.models import Model

EACH = 10  # examples that are right, and that are wrong
CLASSES = 10  # classes of an image, and parents of a layer, that are shown
REACH, STEPS = 0.5, 11  # of a pose sweep
SWEPT = 2_500_000  # numbers in all sweeps together: what a page can carry
TRACED = 5  # images whose couplings are held at one time


@dataclass(frozen=True)
class Routed:
    """How one layer treated one image."""

    name: str
    routing: str
    parents: list[int]  # those shown, which got the most
    maps: Tensor  # [t, k, h, w], shares of these parents
    strength: Tensor  # [t, k]
    equal: float  # the share of a parent where all get the same
    box: Box | None
    top: bool  # whether the parents are the classes


@dataclass(frozen=True)
class Agreed:
    """Which parts of one image agreed on the parents of one layer; see `AgreedLayer`."""

    name: str
    top: bool
    parents: list[int]  # those shown, the most active first
    activations: list[float]
    products: Tensor  # [k, m]
    places: Tensor  # [k, m, 2, 2]
    ring: Tensor | None  # [i, 2]


@dataclass(frozen=True)
class Example:
    """One image of a split, and what the network made of it."""

    index: int  # in the split
    image: Tensor  # [c, h, w] in [0, 1], not standardised
    targets: list[int]
    predicted: list[int]
    winner: int  # the class of the highest score
    probabilities: Tensor  # [classes]
    classes: list[int]  # the likeliest, and those that are there; by score, except where all fit
    decoded: Tensor | None  # [classes shown, c, h, w]
    parts: Tensor | None  # of label sets: decoded from what is there, what was found, what is neither [3, 3, h, w]
    absent: int | None  # the class of the third, if any is left
    sweep: Tensor | None  # [d, steps, c, h, w]
    routed: list[Routed]
    agreed: list[Agreed]

    @property
    def right(self) -> bool:
        return self.targets == self.predicted


def pick_images(batches: Batches, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images at `indices` int64 [b] of a split: as they are shown, and as the model takes them; [b, c, h,
    w].
    """
    batches = replace(batches, views=1)
    plain = replace(batches, standardise="none")
    shown, taken = [], []
    for index in indices.tolist():
        step, row = divmod(index, batches.batch_size)
        for kind, pictures in ((plain, shown), (batches, taken)):
            images, _ = next(kind.epoch(0, start=step))
            pictures.append(images[row])
    return torch.stack(shown), torch.stack(taken)


@torch.no_grad()
def look_into(model: Model, batches: Batches, measured: Measured, decoder: bool) -> list[Example]:
    """Return examples that came out right, one of each class in turn, then the worst mistakes.

    Args:
        model: on the device of `batches`; it is left in evaluation mode.
        batches: of the split that was measured.
        decoder: whether the model has learnt to reconstruct.
    """
    rows = torch.cat([choose_right(measured, EACH), worst(measured, EACH)])
    if not len(rows):
        return []
    shown, images = pick_images(batches, measured.indices[rows])
    output = model.eval()(images)
    routed = [each for part in images.split(TRACED) for each in _by_image(trace_routing(model, part), len(part))]
    agreed = [each for part in images.split(TRACED) for each in _pairs_by_image(trace_pairs(model, part), len(part))]
    examples = []
    sweeps = _sweeps(model, images, measured.right[rows]) if decoder else {}
    for n, row in enumerate(rows.tolist()):
        targets, predicted = measured.targets[row], measured.predicted[row]
        classes = _classes(measured.scores[row], targets | predicted)
        decoded = parts = absent = None
        if decoder:
            poses = output.capsules[-1].poses[n : n + 1]
            decoded = decode_classes(model, poses, torch.tensor([classes], device=poses.device))[0].cpu()
            if measured.several:
                parts, absent = _parts(model, poses, output.scores[n].cpu(), targets, predicted, shown[n])
        examples.append(
            Example(
                index=int(measured.indices[row]),
                image=shown[n].cpu(),
                targets=targets.nonzero().flatten().tolist(),
                predicted=predicted.nonzero().flatten().tolist(),
                winner=int(measured.scores[row].argmax()),
                probabilities=measured.probabilities[row],
                classes=classes,
                decoded=decoded,
                parts=parts,
                absent=absent,
                sweep=sweeps.get(n),
                routed=routed[n],
                agreed=agreed[n],
            )
        )
    return examples


def _classes(scores: Tensor, always: Tensor) -> list[int]:
    """Return all classes where there are few; else those of the highest scores, the winner always, and those of
    `always`; the highest first.
    """
    if len(scores) <= CLASSES:
        return list(range(len(scores)))
    always = always.clone()
    always[scores.argmax()] = True
    falling = scores.argsort(descending=True, stable=True).tolist()
    chosen = sorted(falling, key=lambda n: not always[n])[: max(CLASSES, int(always.sum()))]
    return sorted(chosen, key=falling.index)


def _parts(
    model: Model, poses: Tensor, scores: Tensor, targets: Tensor, predicted: Tensor, image: Tensor
) -> tuple[Tensor, int | None]:
    """Return what is there, what was found and, if a class is left, what is neither, and that class.

    Each is decoded in colours from poses [1, j, d], over `image`.
    """
    absent = absent_class(scores[None], targets[None], predicted[None])
    sets = torch.stack([targets, predicted, absent[0]]).to(poses.device)
    images = image.to(poses.device).expand(3, -1, -1, -1)
    pictures = colour_sets(model, poses.expand(3, -1, -1), sets, images).cpu()
    return pictures, int(absent.long().argmax()) if absent.any() else None


def _sweeps(model: Model, images: Tensor, right: Tensor) -> dict[int, Tensor]:
    """Return sweeps of as many images as `SWEPT` allows, at least two, half of them wrong where there are so many."""
    first, second = right.nonzero().flatten().tolist(), (~right).nonzero().flatten().tolist()
    turns = sorted([*enumerate(first), *enumerate(second)])
    sweeps: dict[int, Tensor] = {}
    numbers = 0
    for _, n in turns:
        frames = shrink(pose_sweep(model, images[n], REACH, STEPS)).cpu()
        numbers += frames.numel()
        if numbers > SWEPT and len(sweeps) >= 2:
            break
        sweeps[n] = frames
    return sweeps


def _by_image(layers: list[RoutedLayer], images: int) -> list[list[Routed]]:
    """Return layers of several images as the layers of each; of many parents those with the largest shares at last."""
    found = []
    for n in range(images):
        each = []
        for layer in layers:
            maps, strength = layer.maps[:, n].cpu(), layer.strength[:, n].cpu()
            parents = maps[-1].flatten(1).sum(1).argsort(descending=True)[:CLASSES].sort().values
            equal = 1 / maps.shape[1]
            kept = parents.tolist()
            each.append(
                Routed(
                    layer.name,
                    layer.routing,
                    kept,
                    maps[:, kept],
                    strength[:, kept],
                    equal,
                    layer.box,
                    layer.top,
                )
            )
        found.append(each)
    return found


def _pairs_by_image(layers: list[AgreedLayer], images: int) -> list[list[Agreed]]:
    """Return pairs of several images as the pairs of each."""
    return [
        [
            Agreed(
                layer.name,
                layer.top,
                layer.parents[n].tolist(),
                layer.activations[n].tolist(),
                layer.products[n].float().cpu(),
                layer.places[n].float().cpu(),
                None if layer.ring is None else layer.ring.float().cpu(),
            )
            for layer in layers
        ]
        for n in range(images)
    ]
