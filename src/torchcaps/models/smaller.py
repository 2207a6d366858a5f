"""Smaller networks of equal outputs, by what routing towards discriminative quality has learnt (ours).

Child capsules whose coefficients are all exactly zero reach no parent: they are left out (`prune`). Such a child may go
with its matrices W_ij; a primary convolution computes it all the same, and can lose a filter only when the capsules of
its type are dead at every position. Coefficients that are constant are folded into the matrices (`fold`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, LinearTransform, PrimaryCapsules, flatten_space
from torchcaps.manifest import Manifest
from torchcaps.models.capsnet import CapsNet
from torchcaps.models.registry import Model, rebuild_model
from torchcaps.votes import LinearVotes

MOST = 2**24  # children of a layer that `prune_to` takes: a record alone says how many there were


class Sparsity(NamedTuple):
    """How much of a layer is exactly zero."""

    layer: str  # its name in the model
    coefficients: int
    zero: int  # of the coefficients
    children: int
    dead: int  # children all of whose coefficients are zero


def count_zeros(model: nn.Module) -> list[Sparsity]:
    """Return what is zero in each layer of constant couplings of `model`, bottom first."""
    found = []
    for name, module in model.named_modules():
        coupling = module.routing.constant_coupling() if isinstance(module, CapsuleLayer) else None
        if coupling is not None:
            zero = coupling == 0  # [i, j]
            found.append(Sparsity(name, zero.numel(), int(zero.sum()), len(zero), int(zero.all(1).sum())))
    return found


def prune(model: Model) -> CapsNet:
    """Return a copy of `model` without its dead child capsules; its outputs are equal up to rounding.

    Going down from the top, a dead hidden capsule is dropped by its own layer too, which may leave more children dead
    below. Filters of the primary convolution are dropped by type of capsule, other primary capsules by their place.

    Raises:
        ValueError: unless `model` is a `CapsNet` that routes towards discriminative quality; where no child of a layer
            is alive.
    """
    model = _prunable(model)
    layers, alive = model.stack.layers, []
    for layer in reversed(layers):  # the parents of a layer are those children of the one above that are alive
        alive.insert(0, living(layer, alive[0] if alive else None))
    return _keep(model, alive)


def sizes_of(model: CapsNet) -> tuple[int, ...]:
    """Return how many types of primary capsules there are, and children of each layer, bottom first."""
    types = model.primary.conv.out_channels // model.primary.pose
    layers = [layer for layer in model.stack.layers if isinstance(layer, CapsuleLayer)]
    return (types, *(layer.transform.sizes.children for layer in layers))


def prune_to(model: Model, sizes: Sequence[int]) -> CapsNet:
    """Return a copy of `model` with as many capsules as `sizes_of` said of a pruned one, to load its weights into.

    Raises:
        ValueError: unless `model` is a `CapsNet` that routes towards discriminative quality and has as many; for one of
            more than `MOST` capsules in a layer.
    """
    model = _prunable(model)
    whole = sizes_of(model)
    if len(sizes) != len(whole) or not all(0 < n <= most for n, most in zip(sizes, whole, strict=True)):
        raise ValueError(f"a network of {list(whole)} capsules was not pruned to {list(sizes)}")
    if max(whole) > MOST:
        raise ValueError(f"a network of {max(whole):,} capsules is too large to have been pruned: at most {MOST:,} are")
    types, children, *hidden = sizes
    places = whole[1] // whole[0]
    if not types <= children <= types * places:
        raise ValueError(f"{types} types of capsules at {places} places were not pruned to {children} capsules")
    with torch.device("cpu"):  # also of a model on the meta device, where no mask can be counted
        bottom = torch.zeros(whole[0], places, dtype=torch.bool)  # any that are as many: the weights say which they are
        bottom[:types, 0] = True
        bottom[:types, 1:] = torch.arange(types * (places - 1)).view(types, -1) < children - types
        above = [torch.arange(most) < n for n, most in zip(hidden, whole[2:], strict=True)]
    return _keep(model, [bottom.flatten(), *above])


def fold(model: Model) -> Model:
    """Return a copy of `model` in which each layer of constant couplings is one matrix product.

    Its couplings stand in its weights (`CapsuleLayer.fold`), so that nothing is left to route; outputs are equal up
    to rounding.

    Raises:
        ValueError: when there is no such layer.
    """
    model = copy.deepcopy(model)
    layers = {name: each for name, each in model.named_modules() if isinstance(each, CapsuleLayer)}
    constant = {name: each for name, each in layers.items() if each.routing.constant_coupling() is not None}
    if not constant:
        raise ValueError("no layer has constant couplings to fold, as those of routing 'discriminative' are")
    for name, layer in constant.items():
        model.set_submodule(name, layer.fold())
    model.origin = None
    return model


def rebuild(manifest: Manifest) -> Model:
    """Return the model that a manifest describes, pruned and folded as it says, to load weights into.

    Of one that was pruned the whole network never takes memory: only its record says how large that was. What it holds
    is what was in the memory before, until the weights are loaded.

    Raises:
        ValueError: when it cannot be built; as `Manifest.origin`.
    """
    if not manifest.smaller.pruned:
        model = rebuild_model(manifest.origin)
        return fold(model) if manifest.smaller.folded else model
    device = torch.get_default_device()
    with torch.device("meta"):
        small = prune_to(rebuild_model(manifest.origin), manifest.smaller.pruned)
        model = fold(small) if manifest.smaller.folded else small
    return model.to_empty(device=device)


def _prunable(model: Model) -> CapsNet:
    """Return a copy, which `create_model` could not make any more."""
    if not isinstance(model, CapsNet):
        raise ValueError(f"a {type(model).__name__} cannot be pruned: only a CapsNet is known to do without children")
    model = copy.deepcopy(model)
    model.origin = None
    return model


def _keep(model: CapsNet, alive: Sequence[Tensor]) -> CapsNet:
    """Return `model`, of which each layer is cut to the children `alive`, bool [i], bottom first."""
    layers = model.stack.layers
    for level in range(1, len(layers)):
        layers[level] = cut(layers[level], children=alive[level])
        layers[level - 1] = cut(layers[level - 1], parents=alive[level])
    types = model.primary.conv.out_channels // model.primary.pose
    bottom, transform = alive[0], layers[0].transform
    if isinstance(transform, SelectedTransform):  # of a network that was pruned before
        bottom = transform.among_all(bottom)
    places = bottom.unflatten(0, (types, -1))  # [type, position]
    model.primary = keep_types(model.primary, places.any(1))
    layers[0] = cut(layers[0], children=alive[0], given=places[places.any(1)].flatten())
    return model


def living(layer: nn.Module, parents: Tensor | None = None) -> Tensor:
    """Return which children of a layer reach any of its `parents`, bool [j]; None: of all. bool [i].

    Raises:
        ValueError: when none does, and when the layer has no coefficients.
    """
    coupling = layer.routing.constant_coupling() if isinstance(layer, CapsuleLayer) else None
    if coupling is None:
        name = layer.routing.spec.name if isinstance(layer, CapsuleLayer) else type(layer).__name__
        raise ValueError(f"routing {name!r} has no constant couplings that could be zero, as 'discriminative' has")
    reached = coupling.detach().ne(0)  # [i, j]
    alive = (reached if parents is None else reached[:, parents]).any(1)
    if not alive.any():
        raise ValueError(f"all {len(alive)} children of a layer are dead: nothing would be left of the network")
    return alive


class SelectedTransform(LinearTransform):
    """`LinearTransform` of some of the `given` children, flattened; `selected` [i] are their places."""

    def __init__(self, selected: Tensor, given: int, parents: int, child_pose: int, parent_pose: int):
        super().__init__(len(selected), parents, child_pose, parent_pose)
        self.given = given
        self.register_buffer("selected", selected)

    def among_all(self, values: Tensor) -> Tensor:
        """Return what the children have, [..., i], among all that are given, [..., given]; 0 of those left out."""
        whole = values.new_zeros(*values.shape[:-1], self.given)
        whole[..., self.get_buffer("selected")] = values
        return whole

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> LinearVotes:
        poses, activations = flatten_space(children)
        places = self.get_buffer("selected")
        chosen = None if activations is None else activations.index_select(1, places)
        return super().vote(Capsules(poses.index_select(1, places), chosen), weight, binary)


def cut(
    layer: nn.Module, children: Tensor | None = None, parents: Tensor | None = None, given: Tensor | None = None
) -> CapsuleLayer:
    """Return a copy of a linear discriminative layer with some of its `children` [i] and `parents` [j] only, bool;
    None: all.

    `given` says which of the children that the copy will be given are these; None: it will be given no others, but
    those that `layer` passes over already.
    """
    assert isinstance(layer, CapsuleLayer) and isinstance(layer.transform, LinearTransform)
    old = layer.transform
    i = slice(None) if children is None else children
    j = slice(None) if parents is None else parents
    weight = old.weight.detach()[j][:, i]
    sizes = (len(weight), weight.shape[-2], weight.shape[-1])
    if given is None and isinstance(old, SelectedTransform):
        given = torch.zeros(old.given, dtype=torch.bool, device=old.weight.device)
        given[old.get_buffer("selected")[i]] = True
    if given is None or given.all():
        transform = LinearTransform(weight.shape[1], *sizes)
    else:
        transform = SelectedTransform(given.nonzero().squeeze(1).to(weight.device), len(given), *sizes)
    transform.weight = nn.Parameter(weight, old.weight.requires_grad)
    return CapsuleLayer(transform, layer.routing.select(i, j, transform.sizes)).train(layer.training)


def keep_types(primary: PrimaryCapsules, kept: Tensor) -> PrimaryCapsules:
    """Return a copy of primary capsules of the types `kept`, bool [type], only."""
    primary = copy.deepcopy(primary)
    conv, channels = primary.conv, kept.repeat_interleave(primary.pose)
    conv.weight = nn.Parameter(conv.weight.detach()[channels], conv.weight.requires_grad)
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach()[channels], conv.bias.requires_grad)
    conv.out_channels = len(conv.weight)
    return primary
