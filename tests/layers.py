"""Small layers at odd sizes, and the same layers as the oracles see them."""

import copy

import numpy as np
import oracles
import torch

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, ConvTransform, LinearTransform, PooledTransform

# name: (transform, shape of the children's poses [b, ...]); one child, one parent, a batch of one, images that are not
# square, stride and padding, vector and matrix poses
CASES = {
    "linear-vector": (lambda: LinearTransform(7, 3, 5, 4), (3, 7, 5)),
    "linear-matrix": (lambda: LinearTransform(5, 3, 4, 4, matrix=True), (2, 5, 4)),
    "linear-matrix-wide": (lambda: LinearTransform(3, 2, 4, 6, matrix=True), (2, 3, 4)),
    "linear-one-child": (lambda: LinearTransform(1, 4, 3, 2), (1, 1, 3)),
    "linear-one-parent": (lambda: LinearTransform(6, 1, 3, 2), (2, 6, 3)),
    "linear-flattened": (lambda: LinearTransform(12, 3, 4, 3), (2, 2, 3, 2, 4)),
    "conv-vector": (lambda: ConvTransform(2, 3, 3, 2, kernel=3, stride=1), (2, 5, 4, 2, 3)),
    "conv-matrix": (lambda: ConvTransform(2, 3, 4, 4, kernel=3, stride=2, matrix=True), (2, 5, 7, 2, 4)),
    "conv-padded": (lambda: ConvTransform(1, 2, 4, 4, kernel=3, stride=2, padding=1, matrix=True), (1, 4, 5, 1, 4)),
    "conv-gaps": (lambda: ConvTransform(2, 2, 2, 3, kernel=1, stride=2), (1, 3, 4, 2, 2)),
    "conv-many-parents": (lambda: ConvTransform(1, 11, 4, 4, kernel=2, matrix=True), (2, 3, 3, 1, 4)),
}

# transforms that some children share, and votes that are told where their child stands
PLACED = {
    "linear-shared": (lambda: LinearTransform(12, 3, 4, 4, matrix=True, shared=6), (2, 2, 3, 2, 4)),
    "linear-pooled": (lambda: PooledTransform(2, 3, 4, 4, matrix=True), (2, 2, 3, 2, 4)),
    "linear-placed": (lambda: LinearTransform(6, 2, 9, 9, matrix=True, coordinates=True), (2, 2, 3, 1, 9)),
    "linear-shared-placed": (lambda: LinearTransform(12, 2, 3, 4, coordinates=True, shared=6), (2, 3, 2, 2, 3)),
    "conv-placed": (lambda: ConvTransform(1, 2, 4, 4, padding=1, matrix=True, coordinates=True), (2, 2, 3, 1, 4)),
}
ALL = {**CASES, **PLACED}


def children(name, seed=0, dtype=torch.float64):
    """Random children of a case, with activations."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.randn(ALL[name][1], generator=generator, dtype=torch.float64)
    activations = torch.rand(ALL[name][1][:-1], generator=generator, dtype=torch.float64)
    return Capsules(poses.to(dtype), activations.to(dtype))


def transform(name, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return ALL[name][0]().to(dtype)


def layer(name, routing, seed=0, dtype=torch.float64, **options):
    """A layer whose every parameter is random, so that no term of the algorithm hides behind a zero."""
    module = CapsuleLayer(transform(name, seed, dtype), routing, **options).to(dtype)
    for parameter in module.routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    return module


def seen(module, capsules):
    """What the oracles see: `module` is a transform."""
    weight, poses = module.weight.detach().numpy(), capsules.poses.detach().numpy()
    activations = None if capsules.activations is None else capsules.activations.detach().numpy()
    if isinstance(module, ConvTransform) and module.scrambled:
        out = oracles.scrambled_votes(poses, weight, module.rows, module.stride)
    elif isinstance(module, ConvTransform):
        out = oracles.conv_votes(poses, weight, module.rows, module.stride, module.padding, activations)
    elif isinstance(module, PooledTransform):
        out = oracles.linear_votes(over_places(poses), weight, module.rows, over_places(activations))
    else:
        weight = np.repeat(weight, module.shared, axis=1)  # types, then the places that share them
        if poses.ndim == 5:  # flattened as (capsule, height, width)
            poses = capsules_first(poses)
            activations = None if activations is None else capsules_first(activations)
        out = oracles.linear_votes(poses, weight, module.rows, activations)
    if module.place is not None:
        h, w, types = capsules.poses.shape[1:4]
        place = [[(y, z) for _ in range(types) for y in range(h) for z in range(w)]]
        if isinstance(module, ConvTransform):
            place = [[child and child[:2] for child in window] for window in out.child]
        oracles.add_coordinates(out, place, (h, w), module.rows)
    return out


def seen_binary(module, capsules, midpoint=False):
    """What the oracles see in XnODR: children and weights xnorized by loops."""
    binary = copy.deepcopy(module)
    binary.weight.data = torch.from_numpy(oracles.xnorized_weight(module.weight.detach().numpy(), midpoint))
    poses = oracles.xnorized_poses(capsules.poses.detach().numpy(), module.rows, midpoint)
    return seen(binary, capsules._replace(poses=torch.from_numpy(poses)))


def over_places(x):
    """[b, h, w, ...] -> [b, ...], the mean over the places."""
    _, h, w = x.shape[:3]
    return sum(x[:, y, z] for y in range(h) for z in range(w)) / (h * w)


def capsules_first(x):
    """[b, h, w, i, ...] -> [b, (i h w), ...], one place at a time."""
    _, h, w, i = x.shape[:4]
    return np.stack([x[:, y, z, k] for k in range(i) for y in range(h) for z in range(w)], axis=1)
