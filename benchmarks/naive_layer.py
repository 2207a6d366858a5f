"""A layer of the library routed by the naive forms: what it is timed against, with the same weights and children."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import naive
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, ConvTransform


def route_naively(layer: CapsuleLayer, poses: Tensor, activations: Tensor, iterations: int) -> Tensor:
    """Parents' poses [b, p, j, d] of all iterations of a layer, through the votes as a tensor."""
    return naive_capsules(layer, Capsules(poses, activations), iterations).poses


def naive_capsules(layer: CapsuleLayer, children: Capsules, iterations: int) -> Capsules:
    """Parents [b, p, j, d] with their activations [b, p, j], where the routing gives them."""
    poses, activations = children
    transform, votes = layer.transform, partial(naive_votes, layer, poses)
    get = defaultdict(lambda: poses.new_empty(0), layer.routing.named_parameters())
    norm = get["norm.weight"], get["norm.bias"]
    betas = get["activation.beta_u"], get["activation.beta_a"]
    seen = poses.new_empty(0) if activations is None else activations.unsqueeze(1)  # in windows, [b, p, i]
    if activations is not None and isinstance(transform, ConvTransform):
        seen = naive.conv_windows(activations, transform.shape[1], transform.stride)
    match layer.routing.spec.name:
        case "dynamic" | "xnodr" | "uniform":
            return Capsules(naive.dynamic(votes(), iterations))
        case "xnidr" | "xnodr-xnidr":
            return Capsules(naive.xnidr(votes(), iterations))
        case "discriminative":
            return Capsules(naive.discriminative(votes(), get["coefficient"]))
        case "em":
            return Capsules(*naive.em(votes(), seen, *betas, iterations)[:2])
        case "inverted-attention":
            return Capsules(naive.inverted_attention(votes(), *norm, iterations))
        case "inverted-attention-c":
            return Capsules(*naive.inverted_attention_c(votes(), seen, norm, betas, iterations)[:2])
        case "self-attention":
            return Capsules(naive.self_attention(votes(), get["prior"]))
        case "self-routing":
            return Capsules(*naive.self_routing(votes(), seen, get["offset"])[:2])
        case "variational-bayes":
            return Capsules(*naive.variational_bayes(votes(), seen, get["beta_a"], get["beta_u"], iterations)[:2])
        case _:
            return Capsules(*naive.fm(votes(), *norm)[:2])


def naive_votes(layer: CapsuleLayer, poses: Tensor) -> Tensor:
    """[b, p, i, j, d], of binarized children and weights where the routing has it so."""
    transform, name = layer.transform, layer.routing.spec.name
    rows, weight = transform.rows, transform.weight

    def make(poses: Tensor, weight: Tensor) -> Tensor:
        if isinstance(transform, ConvTransform):
            return naive.conv_votes(poses, weight, rows, transform.stride)
        return naive.linear_votes(poses, weight, rows)

    if name == "xnodr":
        return make(*naive.xnorized(poses, weight, rows))
    if name == "xnodr-xnidr":
        return make(*naive.signs(poses, weight)) * make(*naive.scales(poses, weight, rows))
    return make(poses, weight)
