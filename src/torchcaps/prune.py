"""Smaller networks of equal outputs: child capsules whose coefficients are all exactly zero are left out (ours).

Such a child reaches no parent. It may go with its matrices W_ij; a primary convolution computes it all the same, and
can lose a filter only when the capsules of its type are dead at every position.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, LinearTransform, PrimaryCaps, flatten_space
from torchcaps.models import CapsNet, Model
from torchcaps.routing.discriminative import Discriminative
from torchcaps.votes import LinearVotes


class Sparsity(NamedTuple):
    """How much of a layer is exactly zero."""

    layer: str  # its name in the model
    coefficients: int
    zero: int  # of the coefficients
    children: int
    dead: int  # children all of whose coefficients are zero


def count_zeros(model: nn.Module) -> list[Sparsity]:
    """What is zero in each layer of `model` that routes towards discriminative quality, bottom first."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, CapsuleLayer) and isinstance(module.routing, Discriminative):
            zero = module.routing.coefficient == 0  # [i, j]
            found.append(Sparsity(name, zero.numel(), int(zero.sum()), len(zero), int(zero.all(1).sum())))
    return found


def prune(model: Model) -> CapsNet:
    """A copy of `model` without its dead child capsules; its outputs are equal up to rounding.

    Going down from the top, a dead hidden capsule is dropped by its own layer too, which may leave more children dead
    below. Filters of the primary convolution are dropped by type of capsule, other primary capsules by their place.

    Raises:
        ValueError: unless `model` is a `CapsNet` that routes towards discriminative quality; where no child of a layer
            is alive.
    """
    if not isinstance(model, CapsNet):
        raise ValueError(f"a {type(model).__name__} cannot be pruned: only a CapsNet is known to do without children")
    model = copy.deepcopy(model)
    model.origin = None
    layers = model.stack.layers
    for level in reversed(range(1, len(layers))):
        alive = living(layers[level])
        layers[level] = cut(layers[level], children=alive)
        layers[level - 1] = cut(layers[level - 1], parents=alive)
    alive = living(layers[0])
    types = model.primary.conv.out_channels // model.primary.pose
    places = alive.unflatten(0, (types, -1))  # [type, position]
    model.primary = keep_types(model.primary, places.any(1))
    layers[0] = cut(layers[0], children=alive, given=places[places.any(1)].flatten())
    return model


def living(layer: nn.Module) -> Tensor:
    """Which children of a layer reach any parent, bool [i].

    Raises:
        ValueError: when none does, and when the layer has no coefficients.
    """
    if not (isinstance(layer, CapsuleLayer) and isinstance(layer.routing, Discriminative)):
        name = layer.routing.spec.name if isinstance(layer, CapsuleLayer) else type(layer).__name__
        raise ValueError(f"routing {name!r} has no coefficients that could be zero: only 'discriminative' has them")
    alive = layer.routing.coefficient.detach().ne(0).any(1)
    if not alive.any():
        raise ValueError(f"all {len(alive)} children of a layer are dead: nothing would be left of the network")
    return alive


class SelectedTransform(LinearTransform):
    """`LinearTransform` of some of the children that it is given, flattened; `selected` [i] are their places."""

    def __init__(self, selected: Tensor, parents: int, child_pose: int, parent_pose: int):
        super().__init__(len(selected), parents, child_pose, parent_pose)
        self.register_buffer("selected", selected)

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> LinearVotes:
        poses, activations = flatten_space(children)
        places = self.get_buffer("selected")
        chosen = None if activations is None else activations.index_select(1, places)
        return super().vote(Capsules(poses.index_select(1, places), chosen), weight, binary)


def cut(
    layer: nn.Module, children: Tensor | None = None, parents: Tensor | None = None, given: Tensor | None = None
) -> CapsuleLayer:
    """A copy of a linear discriminative layer with some of its `children` [i] and `parents` [j] only, bool; None: all.

    `given` says which of the children that the copy will be given are these; None: it will be given no others.
    """
    assert isinstance(layer, CapsuleLayer) and isinstance(layer.transform, LinearTransform)
    old, routing = layer.transform, copy.deepcopy(layer.routing)
    assert isinstance(routing, Discriminative)
    i = slice(None) if children is None else children
    j = slice(None) if parents is None else parents
    weight, coefficient = old.weight.detach()[j][:, i], routing.coefficient.detach()[i][:, j]
    sizes = (len(weight), weight.shape[-2], weight.shape[-1])
    if given is None or given.all():
        transform = LinearTransform(weight.shape[1], *sizes)
    else:
        transform = SelectedTransform(given.nonzero().squeeze(1), *sizes)
    transform.weight = nn.Parameter(weight)
    routing.sizes = transform.sizes
    routing.coefficient = coefficient if routing.fixed else nn.Parameter(coefficient)
    if routing.bias is not None:
        routing.bias = nn.Parameter(routing.bias.detach()[j])
    return CapsuleLayer(transform, routing)


def keep_types(primary: PrimaryCaps, kept: Tensor) -> PrimaryCaps:
    """A copy of primary capsules of the types `kept`, bool [type], only."""
    primary = copy.deepcopy(primary)
    conv, channels = primary.conv, kept.repeat_interleave(primary.pose)
    conv.weight = nn.Parameter(conv.weight.detach()[channels])
    conv.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach()[channels])
    conv.out_channels = len(conv.weight)
    return primary
