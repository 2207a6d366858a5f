"""The table of routings and their settings that every property is tried on, and the oracle of each."""

import numpy as np
import oracles
import pytest
from layers import CASES, seen, seen_binary, transform

from torchcaps.capsules import squash_exponential
from torchcaps.routing import list_routings

SPECS = {spec.name: spec for spec in list_routings()}
VARIANTS = [
    ("uniform", {}),
    ("uniform", {"bias": True}),
    ("dynamic", {}),
    ("dynamic", {"bias": True}),
    ("dynamic", {"over": "children"}),
    ("dynamic", {"start": "learnt"}),
    ("dynamic", {"start": "random", "over": "children"}),
    ("em", {"temperature": 0.5}),
    ("em", {"temperature": (0.2, 0.7), "scope": "window"}),
    ("em", {"normalise": True}),
    ("fm", {}),
    ("fm", {"batch_norm": "child", "mean": False}),
    ("fm", {"batch_norm": "pair"}),
    ("fm", {"batch_norm": "pair", "l2": False}),
    ("fm", {"batch_norm": None, "halved": False}),
    ("fm", {"batch_norm": None, "l2": False}),
    ("inverted-attention", {}),
    ("inverted-attention", {"scaled": True, "scope": "image"}),
    ("inverted-attention", {"start": "learnt", "layer_norm": False}),
    ("inverted-attention", {"start": "random", "scope": "image"}),
    ("inverted-attention", {"bias": True}),
    ("inverted-attention-c", {"temperature": 0.5, "scaled": True}),
    ("inverted-attention-c", {"temperature": 0.5, "start": "learnt", "bias": True}),
    ("inverted-attention-c", {"temperature": 0.5, "scope": "image", "layer_norm": False}),
    ("inverted-attention-c", {"normalise": True}),
    ("self-attention", {}),
    ("self-attention", {"bias": True, "shrink": "squash"}),
    ("self-attention", {"prior": False}),
    ("self-routing", {}),
    ("variational-bayes", {}),
    ("variational-bayes", {"scope": "window"}),
    ("discriminative", {}),
    ("discriminative", {"bias": True}),
    ("xnodr", {}),
    ("xnodr", {"bias": True}),
    ("xnodr", {"threshold": "midpoint"}),
    ("xnidr", {}),
    ("xnidr", {"bias": True}),
    ("xnidr", {"threshold": "midpoint"}),
    ("xnidr", {"over": "children"}),
    ("xnodr-xnidr", {}),
    ("xnodr-xnidr", {"bias": True}),
]
FIRST = list({name: (name, options) for name, options in reversed(VARIANTS)}.values())  # one setting of each
EXACT = [(name, options) for name, options in VARIANTS if SPECS[name].exact_gradient]
# Binary votes take no coordinates. Where signs of two elements cancel, half of the votes are zero, and with both
# projections binary rounding chooses the sign of a parent that sees few children.
UNFIT = {
    "xnodr": {name for name in CASES if transform(name).place is not None},
    "xnodr-xnidr": {name for name in CASES if transform(name).place is not None or transform(name).shape[-2] == 2},
}
PAIRS = [
    (name, routing, options) for name in CASES for routing, options in VARIANTS if name not in UNFIT.get(routing, ())
]
every_variant = pytest.mark.parametrize(("routing", "options"), VARIANTS, ids=lambda x: str(x) if x else "")
first_quickly = pytest.mark.parametrize(  # and the other settings where there is time
    ("routing", "options"),
    [pytest.param(*each, marks=() if each in FIRST else pytest.mark.slow) for each in VARIANTS],
    ids=lambda x: str(x) if x else "",
)
every_first = pytest.mark.parametrize(("routing", "options"), FIRST, ids=[name for name, _ in FIRST])
every_pair = pytest.mark.parametrize(("name", "routing", "options"), PAIRS, ids=lambda x: str(x) if x else "")


def oracle(module, capsules, iterations):
    """Poses [b, p, j, d] and activations [b, p, j] or None of a layer by the loops of its paper."""
    truth, routing = seen(module.transform, capsules), module.routing
    get = {name: value.numpy() for name, value in routing.state_dict().items()}
    bias = get.get("bias", 0.0)
    match routing.spec.name:
        case "uniform":
            return oracles.uniform(truth, bias), None
        case "dynamic":
            return oracles.dynamic(truth, iterations, routing.over, get.get("initial", 0.0), bias), None
        case "xnodr" | "xnodr-xnidr":
            truth = seen_binary(module.transform, capsules, routing.threshold == "midpoint")
            dynamic = oracles.dynamic if routing.spec.name == "xnodr" else oracles.xnidr
            return dynamic(truth, iterations, routing.over, bias=bias), None
        case "xnidr":
            return oracles.xnidr(truth, iterations, routing.over, bias, routing.agreement == "xnor-midpoint"), None
        case "em":
            return oracles.em(truth, iterations, routing.scope, costs(routing, get))
        case "fm":
            scale, shift = (1.0, 0.0) if routing.norm is None else vote_norm(truth, routing, get)
            return oracles.fm(truth, routing.l2, routing.mean, routing.halved, routing.eps, scale, shift)
        case "inverted-attention":
            b, p, _, j, d = truth.shape
            parents = np.zeros((b, p, j, d)) + get.get("initial", 0.0)
            norm = get.get("norm.weight"), get.get("norm.bias")
            for _ in range(iterations):
                parents = oracles.inverted_attention_step(truth, parents, *norm, routing.scale, routing.scope, bias)
            return parents, None
        case "inverted-attention-c":
            norm, start = (get.get("norm.weight"), get.get("norm.bias")), get.get("initial", 0.0)
            some = truth, iterations, start, norm, routing.scale, costs(routing, get)
            return oracles.inverted_attention_c(*some, routing.scope, bias)
        case "self-attention":
            exponential = routing.shrink is squash_exponential
            return oracles.self_attention(truth, get.get("prior", 0.0), bias, exponential), None
        case "self-routing":
            return oracles.self_routing(truth, get["offset"], routing.eps)
        case "variational-bayes":
            norm = routing.pose_norms[0].eps
            betas = get["beta_a"], get["beta_u"]
            return oracles.variational_bayes(truth, iterations, routing.scope, *betas, 1e-300, norm)
        case "discriminative":
            return oracles.discriminative_parents(truth, get["coefficient"], bias), None
    raise AssertionError(f"routing {routing.spec.name} has no oracle: write one")


def costs(routing, get):
    """What `oracles.clusters` takes after the coupling, lambda as a function of the iteration."""
    activation = routing.activation
    betas = get["activation.beta_u"], get["activation.beta_a"]
    return *betas, activation.inverse_temperature, activation.normalise, routing.eps


def vote_norm(truth, routing, get):
    """Scale and shift of the votes, of the batch in training and of the running statistics elsewhere."""
    mean, variance = get["norm.running_mean"], get["norm.running_variance"]
    if routing.training:
        mean, variance, _ = oracles.vote_statistics(truth, routing.norm.each)
    scale = get["norm.weight"] / np.sqrt(variance + routing.norm.eps)
    return scale, get["norm.bias"] - mean * scale


def positions_flat(x, space):
    """[b, *space, ...] -> [b, p, ...]."""
    return x.flatten(1, 2) if space else x.unsqueeze(1)
